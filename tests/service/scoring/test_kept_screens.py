"""A screen that is sent again computes nothing, and what passes have shared never becomes an answer of `/score`."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import manifest
from tests.golden_requests import post_eval as post
from tests.in_process_pool import eval_result
from tests.in_process_service import InProcessService
from tests.service.scoring.keeping_service import NO_CACHE, keeping_service
from workers.errors import DecryptionFailed, NonFiniteResult, WeightsInvalid

SMALL, LARGE = b"a piece", b"of several batches" * 1000
"""The first shares passes with others, the second fills them by itself."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InProcessService]:
    with keeping_service(tmp_path / "data") as service:
        yield service


@pytest.fixture
def client(service: InProcessService) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def models(files: FileServer, num_models: int = 1) -> list[dict[str, Any]]:
    return [manifest(files, f"kept-{i}.safetensors", b"weights %d" % i) for i in range(num_models)]


def body(files: FileServer, pieces: list[bytes], **more: Any) -> dict[str, Any]:
    encoded = [{"data": base64.b64encode(piece).decode()} for piece in pieces]
    return {"pieces": encoded, "models": models(files), **more}


def eval_body(files: FileServer, piece: bytes) -> dict[str, Any]:
    (model,) = models(files)
    weights = {f"weights_{name}": model[name] for name in ("url", "checksum", "size")}
    return {"data": base64.b64encode(piece).decode(), **weights}


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Of the pieces, in their order; all of them."""
    assert response.status_code == 200, response.text
    *lines, last = map(json.loads, response.text.splitlines())
    assert last["error"] is None
    return sorted(lines, key=lambda line: int(line["piece"]))


def screen(client: httpx.Client, request: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return lines_of(client.post("/screen", json=request, **options))


def are_cached(lines: list[dict[str, Any]]) -> set[bool]:
    return {model["result_cached"] for line in lines for model in line["models"]}


def computed(service: InProcessService) -> list[bytes]:
    """The small pieces that the pool was given."""
    return [piece for job in service.pool.jobs for piece in job.pieces]


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"soma_eval_{name} "))


def without_cached(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**line, "models": [{**model, "result_cached": None} for model in line["models"]]} for line in lines
    ]


def test_the_second_time_nothing_is_computed(
    service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    request = body(files, [b"piece %d" % i for i in range(40)] + [LARGE], models=models(files, 2))
    first = screen(client, request)
    num_jobs = len(service.pool.jobs)
    with service.busy():  # no worker is needed
        second = screen(client, request)
    assert (are_cached(first), are_cached(second)) == ({False}, {True})
    assert without_cached(first) == without_cached(second)
    assert len(service.pool.jobs) == num_jobs
    assert metric(client, "result_cache_hits_total") == 41 * 2


def test_only_what_is_missing_is_computed(
    service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    screen(client, body(files, [b"one", b"two"]))
    service.pool.jobs.clear()
    lines = screen(client, body(files, [b"one", b"three", b"two", b"four"]))
    assert [line["models"][0]["result_cached"] for line in lines] == [True, False, True, False]
    assert computed(service) == [b"three", b"four"]


def test_a_screen_that_was_cut_off_goes_on_where_it_was(
    service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    pieces = [b"piece %d" % i for i in range(400)]
    with client.stream("POST", "/screen", json=body(files, pieces)) as response:
        known = [json.loads(line)["piece"] for line, _ in zip(response.iter_lines(), range(20), strict=False)]
    while metric(client, "requests_admitted"):
        time.sleep(0.01)
    service.pool.jobs.clear()
    assert len(screen(client, body(files, pieces))) == 400
    assert not {pieces[i] for i in known} & set(computed(service))


def test_another_seed_is_computed(client: httpx.Client, files: FileServer) -> None:
    screen(client, body(files, [SMALL]))
    assert are_cached(screen(client, body(files, [SMALL], seed=1))) == {False}


@pytest.mark.parametrize("piece", [SMALL, LARGE], ids=["small", "large"])
def test_what_score_has_computed_is_used(client: httpx.Client, files: FileServer, piece: bytes) -> None:
    post(client, eval_body(files, piece))
    assert are_cached(screen(client, body(files, [piece]))) == {True}


@pytest.mark.parametrize(("piece", "is_given"), [(SMALL, False), (LARGE, True)], ids=["small", "large"])
def test_what_a_shared_pass_has_computed_is_no_answer_of_score(
    client: httpx.Client, files: FileServer, piece: bytes, is_given: bool
) -> None:
    screen(client, body(files, [piece]))
    assert post(client, eval_body(files, piece))["timings"]["result_cached"] is is_given


def test_what_score_has_computed_comes_before_what_a_shared_pass_has(
    service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    screen(client, body(files, [SMALL]))
    service.pool._default = eval_result(loss=2.0)
    post(client, eval_body(files, SMALL))
    assert screen(client, body(files, [SMALL]))[0]["models"][0]["loss"] == 2.0


def test_no_cache_computes_anew_and_does_not_compare(
    service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    screen(client, body(files, [SMALL]))
    post(client, eval_body(files, SMALL))
    service.pool._default = eval_result(loss=1.0 + 2**-52)
    (line,) = screen(client, body(files, [SMALL]), headers=NO_CACHE)
    assert line["models"][0]["loss"] > 1.0
    assert are_cached([line]) == {False}
    assert metric(client, "result_mismatches_total") == 0


@pytest.mark.parametrize("refusal", [DecryptionFailed("no"), WeightsInvalid("no"), NonFiniteResult("no")])
def test_a_verdict_is_kept(tmp_path: Path, files: FileServer, refusal: Exception) -> None:
    (model,) = models(files)
    with (
        keeping_service(tmp_path, {model["checksum"]: refusal}) as service,
        service.client() as client,
    ):
        first = screen(client, body(files, [b"one", b"two"]))
        num_jobs = len(service.pool.jobs)
        second = screen(client, body(files, [b"one", b"two"]))
        assert len(service.pool.jobs) == num_jobs > 0
    assert first == second
    assert {line["models"][0]["error"]["detail"] for line in second} == {"no"}


def test_what_lack_of_memory_has_changed_is_not_kept(tmp_path: Path, files: FileServer) -> None:
    (model,) = models(files)
    cut = replace(eval_result(), was_cut_smaller=True)
    with keeping_service(tmp_path, {model["checksum"]: cut}) as service, service.client() as client:
        for _ in range(2):
            assert are_cached(screen(client, body(files, [SMALL]))) == {False}


def test_weights_that_their_url_does_not_deliver_have_no_kept_result(
    client: httpx.Client, files: FileServer
) -> None:
    screen(client, body(files, [SMALL]))
    (model,) = models(files)
    other = {**model, "url": files.publish("others.safetensors", b"weights 1")}
    (line,) = screen(client, body(files, [SMALL], models=[other]))
    assert line["models"][0]["error"]["code"] == "model-checksum-mismatch"


def test_a_restart_forgets_nothing(tmp_path: Path, files: FileServer) -> None:
    for is_kept in (False, True):
        with keeping_service(tmp_path) as service, service.client() as client:
            assert are_cached(screen(client, body(files, [SMALL, LARGE]))) == {is_kept}


@pytest.mark.parametrize("settings", [{"max_kept_results": 0}, {"state_url": "off"}], ids=str)
def test_nothing_is_kept_where_the_operator_says_so(
    settings: dict[str, Any], tmp_path: Path, files: FileServer
) -> None:
    with keeping_service(tmp_path, **settings) as service, service.client() as client:
        for _ in range(2):
            assert are_cached(screen(client, body(files, [SMALL]))) == {False}


def test_a_broken_database_costs_time_and_no_answer(
    tmp_path: Path, service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    screen(client, body(files, [SMALL]))
    for path in (tmp_path / "data").glob("state.sqlite*"):
        path.unlink()
    (tmp_path / "data" / "state.sqlite").write_bytes(b"no database" * 1000)
    lines = screen(client, body(files, [b"piece %d" % i for i in range(40)] + [SMALL, LARGE]))
    assert are_cached(lines) == {False}
    assert len(lines) == 42
