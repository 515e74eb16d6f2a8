"""Answers out of what was computed before: through both APIs, and never because of what happens to be kept."""

import asyncio
import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.file_server import FileServer
from tests.golden_requests import (
    GOLDEN_COMPETITION,
    GOLDEN_EVALUATION,
    absent,
    competition,
    manifest,
    request_for,
)
from tests.golden_requests import post_eval as post
from tests.in_process_pool import Answer, eval_result
from tests.in_process_service import InProcessService
from tests.network_client import connect, score
from tests.problems import assert_problem
from tests.recipe import make_data, small_weights_bytes
from tests.service.scoring.keeping_service import NO_CACHE, keeping_service
from workers.errors import DecryptionFailed
from workers.v1 import NUMERICS_VERSION


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InProcessService]:
    with keeping_service(tmp_path / "data") as service:
        yield service


@pytest.fixture
def client(service: InProcessService) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def request_body(files: FileServer) -> dict[str, Any]:
    return request_for(files, "kept.safetensors", small_weights_bytes())


def counted(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"soma_eval_{name}_total "))


def test_the_second_answer_is_the_first_one(
    service: InProcessService, client: httpx.Client, request_body: dict[str, Any]
) -> None:
    first, second = post(client, request_body), post(client, request_body)
    assert len(service.pool.jobs) == 1
    assert (first["timings"]["result_cached"], second["timings"]["result_cached"]) == (False, True)
    assert first["provenance"] == second["provenance"]
    assert first["provenance"]["numerics_version"] == NUMERICS_VERSION
    for name in ("loss", "embedding", "cross_entropy", "sig_reg", "attends_to_future", "num_batches"):
        assert first[name] == second[name]
    timings = second["timings"]
    assert timings["weights_cached"] == "disk"
    assert timings["queue_seconds"] == timings["load_seconds"] == timings["eval_seconds"] == 0.0
    assert counted(client, "result_cache_hits") == 1


def test_what_was_computed_in_smaller_pieces_says_so_and_is_not_kept(
    tmp_path: Path, request_body: dict[str, Any]
) -> None:
    cut: dict[str, Answer] = {request_body["weights_checksum"]: replace(eval_result(), was_cut_smaller=True)}
    with keeping_service(tmp_path / "data", cut) as service, service.client() as client:
        answers = [post(client, request_body) for _ in range(2)]
    assert [answer["provenance"]["was_cut_smaller"] for answer in answers] == [True, True]
    assert [answer["timings"]["result_cached"] for answer in answers] == [False, False]


def test_no_worker_is_needed(
    service: InProcessService, client: httpx.Client, request_body: dict[str, Any]
) -> None:
    post(client, request_body)
    others = [{**request_body, "seed": seed} for seed in range(100, 104)]
    with service.busy(), ThreadPoolExecutor(len(others)) as threads:
        running = [threads.submit(post, client, other) for other in others]
        while service.pool.num_running < 2:  # as many as may run; the others wait
            time.sleep(0.01)
        service.pool.is_ready = False
        assert post(client, request_body)["timings"]["result_cached"]
        service._loop.call_soon_threadsafe(service.pool.released.set)
        assert not any(answer.result()["timings"]["result_cached"] for answer in running)


@pytest.mark.parametrize("blob", ["weights", "data"])
def test_a_url_must_deliver_the_bytes_whatever_is_kept(
    blob: str,
    service: InProcessService,
    client: httpx.Client,
    request_body: dict[str, Any],
    files: FileServer,
) -> None:
    data = make_data(GOLDEN_EVALUATION.data)
    promised = manifest(files, "kept.bin", data)
    del request_body["data"]
    request_body |= {
        "data_url": promised["url"],
        "data_checksum": promised["checksum"],
        "data_size": len(data),
    }
    content = small_weights_bytes() if blob == "weights" else data
    post(client, request_body)
    kind = "model" if blob == "weights" else "data"
    gone = {**request_body, f"{blob}_url": f"{files.base_url}/gone"}
    assert_problem(client.post("/eval", json=gone), f"{kind}-unavailable")
    other = {**request_body, f"{blob}_url": files.publish("other.bin", bytes(len(content)))}
    assert_problem(client.post("/eval", json=other), f"{kind}-checksum-mismatch")
    assert len(service.pool.jobs) == 1
    same = {**request_body, f"{blob}_url": files.publish("same.bin", content)}
    assert post(client, same)["timings"]["result_cached"]
    assert "/same.bin" in files.requests


def test_a_verdict_is_kept_and_is_worded_the_same(tmp_path: Path, request_body: dict[str, Any]) -> None:
    refused: dict[str, Answer] = {
        request_body["weights_checksum"]: DecryptionFailed("not a safetensors file")
    }
    with keeping_service(tmp_path / "data", refused) as service, service.client() as client:
        first, second = (client.post("/eval", json=request_body) for _ in range(2))
        assert len(service.pool.jobs) == 1
    problem, again = assert_problem(first, "decryption-failed"), assert_problem(second, "decryption-failed")
    assert {**problem, "request_id": ""} == {**again, "request_id": ""}


def test_each_model_of_a_competition_is_looked_up_on_its_own(
    service: InProcessService, client: httpx.Client, files: FileServer
) -> None:
    body = competition(files, GOLDEN_COMPETITION)
    first, *others = body["model_manifests"]
    client.post("/score", json={**body, "model_manifests": [first]}).raise_for_status()
    whole = client.post("/score", json={**body, "model_manifests": [first, *others, absent(files)]}).json()
    assert [model["timings"] and model["timings"]["result_cached"] for model in whole["models"]] == [
        *(True, *(False for _ in others)),
        None,
    ]
    assert whole["models"][-1]["error"]["code"] == "model-unavailable"
    assert len(service.pool.jobs) == 1 + len(others)


def test_the_distance_is_computed_anew(client: httpx.Client, request_body: dict[str, Any]) -> None:
    near = post(client, {**request_body, "target_embedding": [1.0] * 16})
    far = post(client, {**request_body, "target_embedding": [-1.0] * 16})
    assert far["timings"]["result_cached"]
    assert (near["distance"], far["distance"]) == (pytest.approx(0.0), pytest.approx(2.0))


async def test_a_competition_that_ten_ask_for_at_once_is_computed_once(
    service: InProcessService, files: FileServer
) -> None:
    body = competition(files, GOLDEN_COMPETITION)
    async with httpx.AsyncClient(base_url=service.http_url, trust_env=False, timeout=60.0) as client:
        with service.busy():
            asking = [asyncio.create_task(client.post("/score", json=body)) for _ in range(10)]
            while service.pool.num_running == 0:
                await asyncio.sleep(0.01)
            asking.pop(0).cancel()
        answers = [response.json() for response in await asyncio.gather(*asking)]
    assert len({str(answer["loss_score"]) for answer in answers}) == 1
    finished = len(service.pool.jobs) - service.pool.num_cancelled
    assert finished == len(body["model_manifests"])


def test_no_cache_computes_anew_and_tells_of_other_bits(
    service: InProcessService, client: httpx.Client, request_body: dict[str, Any]
) -> None:
    before = post(client, request_body)
    assert not client.post("/eval", json=request_body, headers=NO_CACHE).json()["timings"]["result_cached"]
    assert counted(client, "result_mismatches") == 0
    service.pool._default = replace(eval_result(), loss=1.0 + 2**-52)
    with capture_logs() as lines:
        anew = client.post(
            "/eval", json=request_body, headers={"Cache-Control": "max-age=0, No-Cache"}
        ).json()
    assert anew["loss"] > before["loss"]
    assert counted(client, "result_mismatches") == 1
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert line["weights_checksum"] == request_body["weights_checksum"]


async def test_both_apis_share_what_is_kept(service: InProcessService, files: FileServer) -> None:
    body = competition(files, GOLDEN_COMPETITION)
    by_grpc = await score(await connect(service), body)
    again = await score(await connect(service), body)
    async with httpx.AsyncClient(base_url=service.http_url, trust_env=False) as client:
        by_http = (await client.post("/score", json=body)).json()
    assert len(service.pool.jobs) == len(body["model_manifests"])
    assert by_grpc.loss_score == again.loss_score == by_http["loss_score"]
    assert all(model["timings"]["result_cached"] for model in by_http["models"])


def test_a_job_uses_what_is_kept_and_computes_anew_if_asked(
    client: httpx.Client, request_body: dict[str, Any]
) -> None:
    post(client, request_body)
    for more, is_cached in (({}, True), (NO_CACHE, False)):
        headers = {"Prefer": "respond-async", **more}
        job = client.post("/eval", json=request_body, headers=headers).json()
        while job["state"] in ("queued", "running"):
            job = client.get(f"/jobs/{job['id']}").json()
        assert job["result"]["timings"]["result_cached"] is is_cached


def test_a_restart_forgets_nothing(tmp_path: Path, request_body: dict[str, Any]) -> None:
    with keeping_service(tmp_path) as service, service.client() as client:
        first = post(client, request_body)
    with keeping_service(tmp_path) as service, service.client() as client:
        second = post(client, request_body)
        assert not service.pool.jobs
    assert second["timings"]["result_cached"]
    assert second["provenance"] == first["provenance"]


@pytest.mark.parametrize("settings", [{"max_kept_results": 0}, {"state_url": "off"}], ids=str)
def test_nothing_is_kept_where_the_operator_says_so(
    settings: dict[str, Any], tmp_path: Path, request_body: dict[str, Any]
) -> None:
    with keeping_service(tmp_path, **settings) as service, service.client() as client:
        assert not [post(client, request_body) for _ in range(2)][1]["timings"]["result_cached"]


def test_a_broken_database_costs_time_and_no_answer(
    tmp_path: Path, service: InProcessService, client: httpx.Client, request_body: dict[str, Any]
) -> None:
    post(client, request_body)
    state = tmp_path / "data" / "state.sqlite"
    whole = state.read_bytes()
    for path in state.parent.glob("state.sqlite*"):
        path.unlink()
    state.write_bytes(b"\0" * len(whole))
    answers = [post(client, request_body) for _ in range(2)]
    assert [answer["timings"]["result_cached"] for answer in answers] == [False, False]
    assert len(service.pool.jobs) == 3


def test_inline_data_leaves_nothing_in_the_data_folder(
    tmp_path: Path, client: httpx.Client, request_body: dict[str, Any]
) -> None:
    data = b"inline canary " * 40
    for _ in range(2):
        post(client, {**request_body, "data": base64.b64encode(data).decode()})
    left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not [path for path in left if data in path.read_bytes()]
    assert not [path for path in left if path.parent.name == "partial"]
