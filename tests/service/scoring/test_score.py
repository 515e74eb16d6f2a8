"""POST /score on the real service: whole competitions, and what one bad model costs the others (nothing)."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import base58
import httpx
import numpy as np
import pytest

from service.scoring.worker_errors import to_scoring_error
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION as GOLDEN
from tests.golden_requests import absent, competition, manifest, weights_that_give_nan
from tests.live_service import LiveService, live_service
from tests.problems import assert_problem
from tests.recipe import (
    SMALL_CONFIG,
    golden_competitions,
    make_weights,
    safetensors_bytes,
)
from workers.errors import WorkerError, WorkerTrouble


def post(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/score", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _leaves(kind: type[WorkerError]) -> Iterator[type[WorkerError]]:
    if not kind.__subclasses__():
        yield kind
    for child in kind.__subclasses__():
        yield from _leaves(child)


@pytest.mark.parametrize("name", sorted(golden_competitions()))
def test_golden_competition(name: str, client: httpx.Client, files: FileServer) -> None:
    golden = golden_competitions()[name]
    answer = post(client, competition(files, golden))
    assert answer["winner"] == golden.winner
    assert answer["loss_score"] == [pytest.approx(golden.losses[golden.winner], rel=1e-5)]
    assert answer["distance"] == [pytest.approx(golden.distance, rel=1e-5)]
    assert np.abs(np.array(answer["embedding"]) - golden.embedding).max() <= 2e-5
    assert [model["loss"] for model in answer["models"]] == pytest.approx(golden.losses, rel=1e-5)
    assert all(model["error"] is None and model["provenance"] for model in answer["models"])


def test_margin_and_near_tie(client: httpx.Client, files: FileServer) -> None:
    three = post(client, competition(files, GOLDEN))
    assert three["margin"] == pytest.approx(5.1836057 - 5.161645, rel=1e-3)
    assert three["near_tie"] is True  # within one percent of the winner's loss
    tie = post(client, competition(files, golden_competitions()["competition-tie"]))
    assert (tie["margin"], tie["near_tie"]) == (0.0, True)
    alone = competition(files, GOLDEN)
    alone["model_manifests"] = alone["model_manifests"][1:2]
    answer = post(client, alone)
    assert (answer["margin"], answer["near_tie"]) == (None, False)


def test_nan_weights_standing_first_do_not_win(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN)
    body["model_manifests"].insert(0, weights_that_give_nan(files))
    answer = post(client, body)
    assert answer["winner"] == 1
    assert answer["models"][0]["loss"] is None
    assert answer["models"][0]["error"]["code"] == "non-finite-result"
    assert answer["models"][0]["error"]["model_index"] == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_two_broken_models_cost_the_third_nothing(
    order: tuple[int, ...], client: httpx.Client, files: FileServer
) -> None:
    body = competition(files, GOLDEN)
    good = body["model_manifests"][0]
    wrong_key = {**body["model_manifests"][1], "decryption_key": base58.b58encode(bytes(32)).decode()}
    entries = [good, wrong_key, absent(files)]
    body["model_manifests"] = [entries[i] for i in order]
    answer = post(client, body)
    assert answer["winner"] == order.index(0)
    codes = [model["error"] and model["error"]["code"] for model in answer["models"]]
    assert codes == [[None, "decryption-failed", "model-unavailable"][i] for i in order]


def test_no_valid_model_is_an_error(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN)
    body["model_manifests"] = [
        weights_that_give_nan(files),
        {**body["model_manifests"][1], "decryption_key": None},
    ]
    problem = assert_problem(client.post("/score", json=body), "non-finite-result")
    assert (problem["model_index"], problem["fault"], problem["blob"]) == (0, "model_owner", "model")


def test_no_verdict_is_final_while_a_retry_may_help(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN)
    body["model_manifests"] = [weights_that_give_nan(files), absent(files)]
    problem = assert_problem(client.post("/score", json=body), "model-unavailable")
    assert (problem["model_index"], problem["retryable"]) == (1, True)


def test_broken_data_is_the_submitters_fault(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN)
    swapped = {**body, "data_checksum": "1" * 32}
    problem = assert_problem(client.post("/score", json=swapped), "data-checksum-mismatch")
    assert (problem["fault"], problem["blob"], problem["model_index"]) == ("data_submitter", "data", None)
    assert post(client, body)["winner"] == GOLDEN.winner


BAD_COMPETITIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no models": ({"model_manifests": []}, "invalid-request"),
    "too many models": ({"model_manifests": 65}, "invalid-request"),
    "no target": ({"target_embedding": None}, "invalid-request"),
    "target too long": ({"target_embedding": [1.0] * 17}, "invalid-request"),
    "zero target": ({"target_embedding": [0.0] * 16}, "zero-embedding"),
    "no checksum": ({"data_checksum": None}, "invalid-request"),
    "seed too large": ({"seed": 1 << 64}, "invalid-request"),
    "unknown field": ({"data": "QUJD"}, "invalid-request"),
}


@pytest.mark.parametrize("name", BAD_COMPETITIONS)
def test_bad_competition(name: str, client: httpx.Client, files: FileServer) -> None:
    change, code = BAD_COMPETITIONS[name]
    body = competition(files, GOLDEN)
    if change.get("model_manifests") == 65:
        change = {"model_manifests": body["model_manifests"][:1] * 65}
    assert_problem(client.post("/score", json={**body, **change}), code)


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"decryption_key": "short"}, "invalid-key"),
    "checksum": ({"checksum": "0OIl"}, "invalid-request"),
    "no URL": ({"url": ""}, "invalid-url"),
    "endless URL": ({"url": "https://" + "x" * 9000}, "invalid-url"),
    "size": ({"size": 1 << 63}, "model-too-large"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_manifest_costs_the_others_nothing(
    name: str, client: httpx.Client, files: FileServer
) -> None:
    change, code = MALFORMED[name]
    body = competition(files, GOLDEN)
    first, *others = body["model_manifests"]
    body["model_manifests"] = [{**first, **change}, *others]
    answer = post(client, body)
    assert [model["loss"] is None for model in answer["models"]] == [True, False, False]
    error = answer["models"][0]["error"]
    assert (error["code"], error["fault"], error["model_index"]) == (code, "model_owner", 0)
    body["model_manifests"] = [{**first, **change}] * 2
    problem = assert_problem(client.post("/score", json=body), code)
    assert (problem["fault"], problem["model_index"]) == ("model_owner", 0)


def test_a_zero_embedding_keeps_its_loss_and_has_no_distance(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN)
    tensors = make_weights(SMALL_CONFIG, {"scheme": "scaled", "seed": 7, "gain": 1.0})
    tensors["final_norm.gamma"][:] = tensors["final_norm.beta"][:] = 0.0
    tensors["predictor.bias"][:] = 0.0
    nothing = manifest(files, "nothing.safetensors", safetensors_bytes(tensors))
    good = body["model_manifests"][GOLDEN.winner]
    alone = client.post("/eval", json={"data": "QUJD", "weights_url": nothing["url"]}).json()
    assert alone["embedding"] == [0.0] * 16
    body["model_manifests"] = [good, nothing]
    answer = post(client, body)
    losses = [model["loss"] for model in answer["models"]]
    other = answer["models"][1]
    if answer["winner"] == 0:
        assert losses[0] < losses[1]
    assert (other["distance"], other["error"]["code"]) == (None, "zero-embedding")
    body["model_manifests"] = [nothing, weights_that_give_nan(files)]
    problem = assert_problem(client.post("/score", json=body), "zero-embedding")
    assert (problem["fault"], problem["model_index"]) == ("model_owner", 0)


def test_millions_of_errors_in_one_body_cost_little(
    client: httpx.Client, files: FileServer, service: LiveService
) -> None:
    before = peak_bytes(service)
    body = competition(files, GOLDEN)
    floods: list[dict[str, Any]] = [
        {"model_manifests": [{}] * 1_000_000},
        {f"member {i}": 0 for i in range(300_000)},
    ]
    for flood in floods:
        assert_problem(client.post("/score", json={**body, **flood}), "invalid-request")
    assert peak_bytes(service) - before < 500 << 20  # an error for each would be gigabytes


def peak_bytes(service: LiveService) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("kind", list(_leaves(WorkerError)), ids=lambda kind: kind.__name__)
def test_every_failure_of_the_pool_has_its_meaning(kind: type[WorkerError]) -> None:
    error = to_scoring_error(kind("why"), data_fault="data_submitter")
    assert error.detail == "why"
    assert error.retryable is issubclass(kind, WorkerTrouble)
    assert (error.fault == "service") is error.retryable


def test_eval_and_score_agree(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN)
    answer = post(client, body)
    for entry, result in zip(body["model_manifests"], answer["models"], strict=True):
        alone = client.post(
            "/eval",
            json={
                "data_url": body["data_url"],
                "data_checksum": body["data_checksum"],
                "weights_url": entry["url"],
                "weights_checksum": entry["checksum"],
                "decryption_key": entry["decryption_key"],
                "seed": body["seed"],
                "target_embedding": body["target_embedding"],
            },
        ).json()
        assert (alone["loss"], alone["distance"]) == (result["loss"], result["distance"])


@pytest.mark.slow
def test_promises_of_huge_files_wait_for_room_and_cost_others_nothing(
    tmp_path: Path, files: FileServer
) -> None:
    """Each file alone fits in the cache, all at once do not: one after the other is fetched, and refused."""
    body = competition(files, GOLDEN)
    huge = {**body["model_manifests"][0], "size": 60 << 20, "decryption_key": None}
    flags = ("--cache-max-bytes", str(100 << 20), "--max-model-bytes", str(64 << 20))
    with live_service(tmp_path, *flags) as small, small.client() as client:
        answer = post(client, {**body, "model_manifests": [huge, huge, huge, *body["model_manifests"]]})
    assert answer["winner"] == 3 + GOLDEN.winner
    assert [model["error"] and model["error"]["code"] for model in answer["models"]] == [
        *["model-size-mismatch"] * 3,
        *[None] * len(body["model_manifests"]),
    ]
