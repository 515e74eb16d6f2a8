"""What is on the pages, without a browser."""

import json
import random
import re
from base64 import b64encode
from dataclasses import replace
from typing import Any

import base58
import httpx
import pytest

from service.errors import BlobUnavailable, NoWorker, OutOfResources, ScoringError
from service.http_api.status_page.job_view import row_of, view_of
from service.http_api.status_page.rendering import age, bars, duration, line, page, size
from service.jobs.job import End, Job
from service.scoring.results import CompetitionResult, ModelOutcome, Progress
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION, absent, competition, request_for
from tests.in_process_service import InProcessService
from tests.live_service import LiveService
from tests.misbehaving_server import serving_in_a_thread, slow_body
from tests.service.http_api.status_page.busy_service import jobs_of
from tests.service.http_api.status_page.page_text import text_of
from tests.service.http_api.status_page.request_headers import AS_JOB, HTML
from tests.service.jobs.scripted_scorer import evaluation
from tests.sockets import wait_until


@pytest.fixture
def watcher(busy: InProcessService) -> Any:
    with busy.client(headers=HTML) as client:
        yield client


def test_the_page_says_first_whether_it_serves(watcher: httpx.Client) -> None:
    words = text_of(watcher.get("/").text)
    assert "Yes, with 3 of 4 devices." in words
    assert words.index("Yes, with") < words.index("Devices") < words.index("Queue") < words.index("Jobs")


def test_every_panel_has_its_numbers(watcher: httpx.Client) -> None:
    words = text_of(watcher.get("/").text)
    for expected in (
        "4 × NVIDIA H100 80GB HBM3",
        "cuda:0 evaluating",
        "2 14.6 GB",
        "batch 13 in 0–20",
        "2 hung",
        "The worker before this one made no progress for 180 s.",
        "24.7 GB of 85.9 GB",
        "running 4",
        "2 of 64 places taken",
        "score, 3 models",
        "44 of 123",
        "non-finite-result",
        "model-unavailable fault of the model's owner",
        "weights-invalid fault of the model's owner",
        "failed, others' fault",
        "queue-full this service",
        "hits",
        "evictions",
        "of 4.19 MB",
        "Watched checkpoints run-7 last checkpoint",
        "step-056000.safetensors",
        "4 more with a higher loss.",
        "Architecture 1",
        "precision float32",
        "timeout 1 h 00 min",
    ):
        assert expected in words, expected


def test_the_age_of_a_self_test_and_the_time_of_each_phase_are_told(watcher: httpx.Client) -> None:
    html = watcher.get("/").text
    assert re.search(r"cuda:1 evaluating 2 min ago", text_of(html))
    for phase in ("queue", "download", "load", "eval"):
        assert re.search(rf'aria-label="{phase}: p50 [\d.]+ m?s, p99 [\d.]+ m?s"', html), phase


def test_who_waits_and_since_when(api: InProcessService, plain: dict[str, Any]) -> None:
    with api.busy(), api.client() as client:
        locations = [
            client.post("/eval", json={**plain, "seed": seed}, headers=AS_JOB).headers["location"]
            for seed in (21, 22, 23)
        ]
        wait_until(lambda: api.components is not None and api.components.scheduler.num_waiting == 1)
        words = text_of(client.get("/", headers=HTML).text)
        assert re.search(r"running 2 waiting 1 oldest wait \d+ s Retry-After now –", words)
        for location in locations:
            client.delete(location)


def test_a_download_in_flight_has_its_size_and_rate(api: InProcessService, plain: dict[str, Any]) -> None:
    slow = slow_body(bytes(2_000_000), bytes_per_second=100_000)
    with serving_in_a_thread(slow) as url, api.client() as client:
        request = {"data": plain["data"], "weights_url": url, "weights_size": 2_000_000}
        location = client.post("/eval", json=request, headers=AS_JOB).headers["location"]
        seen = r"Downloads in flight weights *[\d.]+ kB of 2 MB *[\d.]+ [kM]B/s"
        wait_until(lambda: re.search(seen, text_of(client.get("/", headers=HTML).text)) is not None)
        client.delete(location)


def test_no_key_and_no_url_is_on_a_page(api: InProcessService, plain: dict[str, Any]) -> None:
    key = base58.b58encode(b"canary-decryption-key-canary-key").decode()
    with api.busy(), api.client() as client:
        canaries = {**plain, "decryption_key": key, "weights_url": f"{plain['weights_url']}?canary-query"}
        absent_too = {**canaries, "weights_url": f"{plain['weights_url']}-absent?canary-query", "seed": 5}
        del absent_too["weights_checksum"]
        running, failed = (
            client.post("/eval", json=body, headers=AS_JOB).headers["location"]
            for body in (canaries, absent_too)
        )
        wait_until(lambda: client.get(failed).json()["state"] == "failed")
        for path in ("/", running, failed, "/status/panels", f"/status{running}/panels"):
            html = client.get(path, headers=HTML).text
            assert html
            for secret in ("canary", key, plain["weights_url"]):
                assert secret not in html, path
        client.delete(running)


def test_an_idle_service_says_so_in_each_panel(api: InProcessService) -> None:
    expected = (
        "Yes. A request sent now is served.",
        "cpu idle",
        "nothing",
        "running 0",
        "of 64 places taken",
        "Downloads in flight None.",
    )
    with api.client() as client:
        # What the tests before this one have cancelled may end a moment later.
        wait_until(lambda: not [text for text in expected if text not in text_of(client.get("/").text)])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_pages_keep_everything_foreign_out(watcher: httpx.Client, method: str) -> None:
    response = watcher.request(method, "/")
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"https?://(?!www\.w3\.org)", response.text)


def test_a_job_is_a_page_for_browsers_and_json_for_others(busy: InProcessService) -> None:
    with busy.client() as client:
        job_id = re.findall(r'href="jobs/([^"]+)"', client.get("/").text)[0]
        as_json = client.get(f"/jobs/{job_id}")
        as_page = client.get(f"/jobs/{job_id}", headers=HTML)
    assert as_json.json()["id"] == job_id
    assert as_page.headers["content-type"].startswith("text/html")
    assert as_json.headers["vary"] == as_page.headers["vary"] == "Accept"


def test_the_page_of_a_competition_has_numbers_phases_provenance_and_reasons(busy: InProcessService) -> None:
    with busy.client(headers=HTML) as client:
        html = client.get(jobs_of(busy)["won"]).text
    words = text_of(html)
    for expected in (
        "Succeeded: model 0 wins with loss 4.578473.",
        "Model 0 winner",
        "cross-entropy 4.552973",
        "margin 0.023452",
        "load 100 ms eval 400 ms",
        "Cross-entropy along the data 4.4",
        "in 41 parts; the line is the mean",
        "seed 77",
        "sequences 648 batches 41",
        "torch 2.13.0+cu130",
        "Model 3 non-finite-result fault of the model's owner: The weights give no finite result; "
        "the loss is not a number.",
    ):
        assert expected in words, expected
    assert 'aria-label="wait ' in html


def test_the_page_of_a_failed_job_says_whose_fault_it_was(busy: InProcessService) -> None:
    with busy.client(headers=HTML) as client:
        words = text_of(client.get(jobs_of(busy)["failed"]).text)
    assert "Failed: A file could not be fetched." in words
    assert "model-unavailable fault of the model's owner: the server answered with status 404." in words


def test_what_is_not_there_is_a_page_too(watcher: httpx.Client) -> None:
    absent = watcher.get("/jobs/absent")
    assert absent.status_code == 404
    assert "There is no such job." in text_of(absent.text)


def test_panels_and_events_are_the_same(busy: InProcessService) -> None:
    with busy.client() as client:
        for path in ("/status", f"/status{jobs_of(busy)['won']}"):
            panels = client.get(f"{path}/panels").json()["panels"]
            with client.stream("GET", f"{path}/events") as events:
                assert events.headers["content-type"].startswith("text/event-stream")
                lines = events.iter_lines()
                assert next(lines) == "event: panels"
                event = json.loads(next(lines).removeprefix("data: "))
            assert event["panels"].keys() == panels.keys()
            for html in panels.values():
                text_of(html)


def test_panels_of_no_job_are_not_found(watcher: httpx.Client) -> None:
    assert watcher.get("/status/jobs/absent/panels").status_code == 404
    assert watcher.get("/status/jobs/absent/events").status_code == 404


def test_streams_beyond_the_limit_are_told_to_ask(
    api: InProcessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http_api.status_page.routes.MAX_STREAMS", 0)
    with api.client() as client:
        assert client.get("/status/events").status_code == 204
        assert client.get("/status/panels").status_code == 200


# -- views and filters ------------------------------------------------------------------------------------------


def job_with(*models: Progress) -> Job:
    job = Job("score", len(models), deadline=0.0)
    for progress in models:
        job.note(progress)
    return job


def test_the_bars_of_a_job_that_runs() -> None:
    job = job_with(
        Progress("downloading", model_index=0, bytes_done=25, bytes_total=100, bytes_per_second=2e6),
        Progress("evaluating", model_index=1, batches_done=5, num_batches=10),
    )
    download, load, batches = row_of(job).bars
    assert (download.share, download.text) == (0.625, "2 MB/s")
    assert (load.share, load.text) == (0.5, "1 of 2")
    assert batches.share == 0.25
    assert re.fullmatch(r"5 of 10, \d+ s left", batches.text)


def test_only_a_file_that_is_not_here_has_an_unfinished_download() -> None:
    waits_for_a_connection = Progress("queued", model_index=0)
    waits_once_more = Progress("queued", model_index=0, bytes_done=25, bytes_total=100)
    waits_for_a_device = Progress("queued", model_index=0, is_here=True)
    stored_by_an_earlier_version = Progress("loading", model_index=0)
    downloads = [
        row_of(job_with(progress)).bars[0]
        for progress in (
            waits_for_a_connection,
            waits_once_more,
            waits_for_a_device,
            stored_by_an_earlier_version,
        )
    ]
    assert [(bar.share, bar.text) for bar in downloads] == [
        (0.0, ""),
        (0.25, ""),
        (1.0, "done"),
        (1.0, "done"),
    ]


def test_a_job_that_waits_for_a_device_has_its_file(api: InProcessService, plain: dict[str, Any]) -> None:
    with api.busy(), api.client() as client:
        locations = [
            client.post("/eval", json={**plain, "seed": seed}, headers=AS_JOB).headers["location"]
            for seed in (11, 12, 13)  # one at the device, one ahead, one that waits
        ]
        wait_until(lambda: api.components is not None and api.components.scheduler.num_waiting == 1)
        words = text_of(client.get(locations[2], headers=HTML).text)
        assert "queued downloaddone load batches" in words
        for location in locations:
            client.delete(location)


def test_an_error_of_one_model_is_shown_with_it() -> None:
    job = job_with(Progress("queued", model_index=0), Progress("queued", model_index=1))
    job.become(End("failed", 9, error=OutOfResources("no memory", model_index=1)))
    (model,) = view_of(job).models  # there is nothing to say of the other
    assert model.index == 1
    assert model.failure is not None
    assert model.failure.code == "out-of-resources"
    words = text_of(page("panels/job.html", value=view_of(job), now=0.0))
    assert "Model 1 out-of-resources fault of this service" in words
    assert "Model 0" not in words


def test_models_that_failed_are_shown_with_their_reasons_while_the_others_go_on(
    api: InProcessService, files: FileServer
) -> None:
    body = competition(files, GOLDEN_COMPETITION)
    body["model_manifests"][1] = absent(files)
    with api.busy(), api.client() as client:
        location = client.post("/score", json=body, headers=AS_JOB).headers["location"]
        wait_until(lambda: "failed" in [each["phase"] for each in progress_of(client, location)])
        words = text_of(client.get(location, headers=HTML).text)
        assert "Running." in words
        assert (
            "Model 1 model-unavailable fault of the model's owner: A file could not be fetched; "
            "the server answered with status 404. Model 2" in words
        )
        wait_until(
            lambda: "1 of 3 models failed: model-unavailable" in text_of(client.get("/", headers=HTML).text)
        )
        client.delete(location)


def progress_of(client: httpx.Client, location: str) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = client.get(location).json()["progress"]["models"]
    return models


def test_a_model_that_failed_is_left_out_of_the_bars() -> None:
    failed = Progress("failed", model_index=1, error=BlobUnavailable("gone", blob="model"))
    download, load, batches = row_of(
        job_with(Progress("evaluating", model_index=0, batches_done=5, num_batches=10), failed)
    ).bars
    assert (download.text, load.text) == ("done", "done")
    assert batches.share == 0.5


def test_a_file_that_has_all_its_bytes_has_no_rate_any_more() -> None:
    progress = Progress("downloading", bytes_done=10, bytes_total=10, bytes_per_second=5.0)
    assert row_of(job_with(replace(progress, model_index=0))).bars[0].text == "done"


@pytest.mark.parametrize(("seconds", "expected"), [(4.4, "4 s"), (17, "15 s"), (458, "7 min")])
def test_what_is_left_is_told_in_steps(
    seconds: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "estimated_seconds_left", lambda job: seconds)
    job = job_with(Progress("evaluating", model_index=0, batches_done=5, num_batches=10))
    assert row_of(job).bars[2].text == f"5 of 10, {expected} left"


@pytest.mark.parametrize("error", [NoWorker("<script>alert(1)</script>"), OutOfResources("a & b")])
def test_everything_is_escaped(error: ScoringError) -> None:
    job = job_with(Progress("queued", model_index=0))
    job.become(End("failed", 9, error=error))
    html = page("panels/job.html", value=view_of(job), now=0.0)
    assert error.detail not in html
    assert error.detail in text_of(html)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.3404, "340 ms"),
        (3.44, "3.4 s"),
        (9.96, "9 s"),
        (59.9, "59 s"),
        (61, "1 min"),
        (7500, "2 h 05 min"),
        (400_000, "4 d"),
    ],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


def test_ages_and_sizes() -> None:
    assert age(-3) == "0 s"
    sizes = (None, 12, 999.6, 4096, 999_400, 999_999, 4_838_736_928, 1.2345e15)
    assert [size(number) for number in sizes] == [
        "–",
        "12 B",
        "1 kB",
        "4.1 kB",
        "999 kB",
        "1 MB",
        "4.84 GB",
        "1,234 TB",
    ]


def test_bars_stand_on_each_other() -> None:
    assert bars([0, None, 5], 10) == "M2.1 24.00v-12.00h.8v12.00z"
    assert bars([5], 10, [5]) == "M0.1 12.00v-12.00h.8v12.00z"


def test_a_computed_job_and_one_with_its_kept_result_show_the_same_along_the_data(
    service: LiveService, plain: dict[str, Any]
) -> None:
    data = b64encode(random.Random(4).randbytes(3 * 16 * 1024)).decode()
    lines = []
    for headers in (AS_JOB, {"Prefer": "respond-async"}):
        with service.client() as client:
            location = client.post("/eval", json={**plain, "data": data}, headers=headers).headers["location"]
            client.get(f"{location}/events")
            html = client.get(location, headers=HTML).text
        words = text_of(html)
        assert "in 3 parts; the line is the mean" in words
        lines += re.findall('class="line" d="([^"]+)"', html)
    assert "Kept from an earlier request" in words
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_a_line_has_a_step_for_each_value() -> None:
    assert line([2.0, 3.0, 1.0], 1.0, 3.0) == "M0 12.00H20.00V0.00H40.00V24.00H60.00"
    assert line([2.0, 2.0], 2.0, 2.0) == "M0 12.00H30.00V12.00H60.00"


def test_models_of_one_job_share_the_scale_along_the_data() -> None:
    job = job_with(Progress("queued", model_index=0), Progress("queued", model_index=1))
    outcomes = [
        ModelOutcome(replace(evaluation(), result=replace(evaluation().result, cross_entropy_along=along)))
        for along in ((2.0, 3.0), (1.5, 2.5), ())
    ]
    job.become(End("succeeded", 9, result=CompetitionResult(0, tuple(outcomes[:2]), None, near_tie=False)))
    assert view_of(job).cross_entropy_range == (1.5, 3.0)
    assert page("panels/job.html", value=view_of(job), now=0.0).count('class="along"') == 2
    job.become(End("succeeded", 9, result=CompetitionResult(0, (outcomes[2],) * 2, None, near_tie=False)))
    assert 'class="along"' not in page("panels/job.html", value=view_of(job), now=0.0)


def test_requests_are_counted_once_whatever_they_came_by(
    api: InProcessService, plain: dict[str, Any], files: FileServer
) -> None:
    assert api.components is not None
    minutes = api.components.metrics.last_hour.minutes

    def counted() -> tuple[int, int]:
        served = sum(minute.num_served for minute in minutes())
        return served, sum(minute.failures.total() for minute in minutes())

    def assert_adds(before: tuple[int, int], served: int, failed: int) -> None:
        wait_until(lambda: counted() != before)  # it is counted just after the client has its answer
        assert counted() == (before[0] + served, before[1] + failed)

    absent = {**request_for(files, "known.bin", b"known"), "weights_url": f"{files.base_url}/absent"}
    with api.client() as client:
        for body, change in ((plain, (1, 0)), (absent, (0, 1))):
            before = counted()
            client.post("/eval", json=body)
            assert_adds(before, *change)
            before = counted()
            location = client.post("/eval", json=body, headers=AS_JOB).headers["location"]
            client.get(f"{location}/events")
            assert_adds(before, *change)
            before = counted()
            client.post("/eval", json=body, headers={"Idempotency-Key": f"waits for {change}"})
            client.get("/health")  # by the next answer, what came before it is counted
            assert_adds(before, *change)
        before = counted()
        client.post("/eval", json=plain, headers={"Idempotency-Key": f"waits for {(1, 0)}"})  # the same job
        client.get("/health")
        assert counted() == before
        assert client.get("/jobs/absent").status_code == 404  # no scoring request
        assert client.post("/eval", json={}).status_code == 422
        assert_adds(before, 0, 1)
