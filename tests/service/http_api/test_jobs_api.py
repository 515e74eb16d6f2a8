"""Jobs over HTTP: events with ids, the list, idempotency keys, restarts, and a database that does not work."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.in_process_service import InProcessService, in_process_service
from tests.problems import assert_problem

ASYNC = {"Prefer": "respond-async"}
Event = dict[str, str]


def submit(client: httpx.Client, body: dict[str, Any], headers: dict[str, str] | None = None) -> str:
    accepted = client.post("/eval", json=body, headers={**ASYNC, **(headers or {})})
    assert accepted.status_code == 202, accepted.text
    location: str = accepted.headers["location"]
    return location


def events_of(client: httpx.Client, location: str, last_event_id: str | None = None) -> list[Event]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with client.stream("GET", f"{location}/events", headers=headers) as stream:
        return list(parsed(stream.iter_lines()))


def first_event_of(client: httpx.Client, location: str) -> Event:
    with client.stream("GET", f"{location}/events") as stream:
        return next(parsed(stream.iter_lines()))


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    event: Event = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            event[name] = value
        elif event:
            yield event
            event = {}


def test_events_have_rising_ids_and_go_on_after_the_last_one(
    api: InProcessService, client: httpx.Client, plain: dict[str, Any]
) -> None:
    with api.busy():
        location = submit(client, plain)
        first = first_event_of(client, location)
        assert first["event"] == "progress"
    later = events_of(client, location, first["id"])
    assert [int(event["id"]) for event in later] == sorted({int(event["id"]) for event in later})
    assert int(later[0]["id"]) > int(first["id"])
    assert later[-1]["event"] == "succeeded"
    again = client.get(f"{location}/events", headers={"Last-Event-ID": later[-1]["id"]})
    assert (again.status_code, again.content) == (204, b"")
    assert events_of(client, location, "no number") == later[-1:]


def test_jobs_are_listed_newest_first(
    client: httpx.Client, plain: dict[str, Any], refused: dict[str, Any]
) -> None:
    locations = [submit(client, body) for body in (plain, refused, plain)]
    for location in locations:
        events_of(client, location)
    page = client.get("/jobs", params={"limit": 2}).json()
    assert [f"/jobs/{job['id']}" for job in page["jobs"]] == locations[:0:-1]
    rest = client.get("/jobs", params={"limit": 1, "after": page["next"]}).json()
    assert [f"/jobs/{job['id']}" for job in rest["jobs"]] == locations[:1]
    (failed,) = client.get("/jobs", params={"state": "failed", "limit": 1}).json()["jobs"]
    assert (f"/jobs/{failed['id']}", failed["error"]["code"]) == (locations[1], "weights-invalid")


@pytest.mark.parametrize("query", ["state=no", "limit=0", "limit=101", "after=%00", "after=x"])
def test_a_bad_query_is_refused(query: str, client: httpx.Client) -> None:
    assert_problem(client.get(f"/jobs?{query}"), "invalid-request")


def test_the_same_key_gives_the_same_job_or_its_answer(
    api: InProcessService, client: httpx.Client, plain: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "the-same"}
    num_before = len(api.pool.jobs)
    first = client.post("/eval", json=plain, headers=key)
    again = client.post("/eval", json=plain, headers=key)
    assert (first.status_code, again.content) == (200, first.content)
    location = submit(client, plain, key)
    assert client.get(location).json()["result"] == first.json()
    other = client.post("/eval", json={**plain, "seed": 5}, headers=key)
    assert_problem(other, "idempotency-key-reused")
    assert other.status_code == 422
    assert len(api.pool.jobs) == num_before + 1


def test_an_error_of_the_weights_is_an_answer_too(client: httpx.Client, refused: dict[str, Any]) -> None:
    for _ in range(2):
        response = client.post("/eval", json=refused, headers={"Idempotency-Key": "refused"})
        assert_problem(response, "weights-invalid")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_none_is_refused(key: str, client: httpx.Client, plain: dict[str, Any]) -> None:
    assert_problem(client.post("/eval", json=plain, headers={"Idempotency-Key": key}), "invalid-request")


def test_a_client_that_comes_back_with_its_key_finds_the_work_done_once(
    api: InProcessService, client: httpx.Client, plain: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "comes-back"}
    num_before = len(api.pool.jobs)
    with api.busy(), pytest.raises(httpx.ReadTimeout):
        client.post("/eval", json=plain, headers=key, timeout=0.5)
    assert client.post("/eval", json=plain, headers=key).status_code == 200
    assert len(api.pool.jobs) == num_before + 1


def test_keys_of_two_api_keys_are_apart(tmp_path: Path, plain: dict[str, Any]) -> None:
    with in_process_service(tmp_path, api_keys="one,two") as service, service.client() as client:
        locations = [
            submit(client, plain, {"Idempotency-Key": "k", "Authorization": f"Bearer {api_key}"})
            for api_key in ("one", "two", "one")
        ]
    assert locations[0] == locations[2] != locations[1]


def test_jobs_and_keys_outlive_a_restart(tmp_path: Path, plain: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "k"}
    with in_process_service(tmp_path) as service, service.client() as client:
        done = submit(client, plain, key)
        last = events_of(client, done)[-1]
        service.pool.released.clear()
        unfinished = submit(client, {**plain, "seed": 9})
        seen = first_event_of(client, unfinished)["id"]
        before = client.get(unfinished).json()
        cancelled = submit(client, {**plain, "seed": 8})
        client.delete(cancelled)
    with in_process_service(tmp_path) as service, service.client() as client:
        assert client.get(done).json()["result"]["loss"] == 1.0
        assert events_of(client, done) == [last]
        assert submit(client, plain, key) == done
        later = events_of(client, unfinished, seen)
        assert (later[-1]["event"], int(later[0]["id"]) > int(seen)) == ("succeeded", True)
        after = client.get(unfinished).json()
        assert (after["created_at"], after["result"]["provenance"]["seed"]) == (before["created_at"], 9)
        assert client.get(cancelled).json()["state"] == "cancelled"


def test_where_nothing_is_kept_no_file_is_written(tmp_path: Path, plain: dict[str, Any]) -> None:
    with in_process_service(tmp_path, state_url="off") as service, service.client() as client:
        location = submit(client, plain)
        assert events_of(client, location)[-1]["event"] == "succeeded"
        assert [job["state"] for job in client.get("/jobs").json()["jobs"]] == ["succeeded"]
        assert list(tmp_path.glob("state*")) == []
    with in_process_service(tmp_path, state_url="off") as service, service.client() as client:
        assert_problem(client.get(location), "job-not-found")


def test_without_a_working_database_requests_that_wait_are_answered(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    with in_process_service(tmp_path) as service, service.client() as client:
        for file in tmp_path.glob("state.sqlite*"):
            file.unlink()
        (tmp_path / "state.sqlite").write_bytes(b"no database" * 1000)
        refused = client.post("/eval", json=plain, headers=ASYNC)
        assert_problem(refused, "out-of-resources")
        assert refused.headers["retry-after"]
        assert_problem(client.get("/jobs"), "out-of-resources")
        assert client.post("/eval", json=plain).status_code == 200
        assert "soma_eval_state_ok 0.0" in client.get("/metrics").text
        (tmp_path / "state.sqlite").unlink()
        submit(client, plain)
        assert "soma_eval_state_ok 1.0" in client.get("/metrics").text
