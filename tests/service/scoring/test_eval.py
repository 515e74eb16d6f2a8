"""POST /eval on the real service: real HTTP, a real file server, real encryption, a real worker process."""

import base64
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import base58
import httpx
import numpy as np
import pytest

from service.cli.encryption import commitment_of
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_EVALUATION as GOLDEN
from tests.golden_requests import KEY, assert_golden, request_for
from tests.golden_requests import post_eval as post
from tests.live_service import LiveService
from tests.problems import assert_problem
from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    encrypt,
    golden_cases,
    make_data,
    make_weights,
    safetensors_bytes,
    small_weights_bytes,
)
from tests.service.cli.command import run_command
from workers.v1 import NUMERICS_VERSION

WRONG_KEY = base58.b58encode(bytes(32)).decode()


@pytest.mark.parametrize("name", ["small-1-byte", "small-1025", "small-one-batch-plus-one", "leak-mixed"])
def test_golden_case(name: str, client: httpx.Client, files: FileServer) -> None:
    golden = golden_cases()[name]
    weights = encrypt(safetensors_bytes(make_weights(golden.config, golden.weights)))
    body = {
        **request_for(files, f"{name}.enc", weights),
        "data": base64.b64encode(make_data(golden.data)).decode(),
        "decryption_key": KEY,
        "seed": golden.seed,
    }
    answer = post(client, body)
    assert answer["loss"] == pytest.approx(golden.loss, rel=1e-5)
    assert answer["cross_entropy"] + 0.02 * answer["sig_reg"] == pytest.approx(answer["loss"], rel=1e-6)
    assert answer["attends_to_future"] is golden.attends_to_future
    assert answer["num_batches"] == len(golden.cross_entropy)


def test_the_whole_answer(client: httpx.Client, sealed: dict[str, Any]) -> None:
    target = [1.0] + [0.0] * 15
    answer = post(client, {**sealed, "target_embedding": target})
    assert_golden(answer)
    embedding = np.array(answer["embedding"])
    assert answer["distance"] == pytest.approx(1 - embedding[0] / np.linalg.norm(embedding))
    assert (answer["num_sequences"], answer["num_batches"], answer["attends_to_future"]) == (1, 1, False)
    assert answer["provenance"] == {
        "weights_checksum": sealed["weights_checksum"],
        "data_checksum": answer["provenance"]["data_checksum"],
        "seed": 1,
        "architecture_version": "1",
        "numerics_version": NUMERICS_VERSION,
        "computed_at": answer["provenance"]["computed_at"],
        "architecture": "small",
        "precision": "float32",
        "device": "cpu",
        "was_cut_smaller": False,
        "versions": answer["provenance"]["versions"],
    }
    assert set(answer["timings"]) == {
        "queue_seconds",
        "download_seconds",
        "load_seconds",
        "eval_seconds",
        "total_seconds",
        "weights_cached",
        "result_cached",
    }


def test_no_target_no_distance(client: httpx.Client, plain: dict[str, Any]) -> None:
    assert post(client, plain)["distance"] is None


def test_computed_anew_the_weights_are_on_the_device_and_the_bits_are_the_same(
    client: httpx.Client, sealed: dict[str, Any]
) -> None:
    first = post(client, sealed)
    second = client.post("/eval", json=sealed, headers={"Cache-Control": "no-cache"}).json()
    assert (second["timings"]["weights_cached"], second["timings"]["result_cached"]) == ("device", False)
    assert (first["loss"], first["embedding"]) == (second["loss"], second["embedding"])
    assert "soma_eval_result_mismatches_total 0.0" in client.get("/metrics").text


def test_the_same_again_is_not_computed(client: httpx.Client, sealed: dict[str, Any]) -> None:
    first, second = post(client, sealed), post(client, sealed)
    assert second["timings"]["result_cached"]
    assert (first["loss"], first["embedding"]) == (second["loss"], second["embedding"])
    assert first["provenance"] == second["provenance"]
    computed_at = datetime.fromisoformat(second["provenance"]["computed_at"])
    assert computed_at.utcoffset() == timedelta(0)
    assert computed_at <= datetime.now(UTC)


@pytest.mark.slow
def test_a_command_uses_what_a_running_service_has_computed(
    client: httpx.Client, sealed: dict[str, Any], service: LiveService, tmp_path: Path
) -> None:
    answer = post(client, sealed)
    (tmp_path / "weights.enc").write_bytes(encrypt(small_weights_bytes()))
    (tmp_path / "data").write_bytes(make_data(GOLDEN.data))
    command = ("score", "weights.enc", "--key", KEY, "--data", "data", "--seed", "1", "--json")
    flags = ("--small-model", "--device", "cpu", "--data-dir", str(service.data_dir))
    ran = run_command(tmp_path, *command, *flags)
    (model,) = ran.json["models"]
    assert (ran.code, ran.complaints) == (0, "")
    assert (model["result_cached"], model["loss"]) == (True, answer["loss"])
    (run,) = model["runs"]
    assert datetime.fromisoformat(run["computed_at"]) == datetime.fromisoformat(
        answer["provenance"]["computed_at"]
    )
    assert run["numerics_version"] == NUMERICS_VERSION
    by_service = ("--url", service.http_url, "--no-cache")
    (model,) = run_command(tmp_path, *command, *by_service).json["models"]
    assert (model["result_cached"], model["loss"]) == (False, answer["loss"])


def test_data_by_url(client: httpx.Client, plain: dict[str, Any], files: FileServer) -> None:
    url = files.publish("data.bin", make_data(GOLDEN.data))
    promised = commitment_of(files.folder / "data.bin")
    body = {name: value for name, value in plain.items() if name != "data"}
    answer = post(
        client,
        {**body, "data_url": url, "data_checksum": promised.checksum, "data_size": promised.size},
    )
    assert_golden(answer)
    assert answer["provenance"]["data_checksum"] == promised.checksum


def test_checksum_and_size_are_optional(client: httpx.Client, plain: dict[str, Any]) -> None:
    answer = post(client, {**plain, "weights_checksum": None, "weights_size": None})
    assert_golden(answer)
    assert answer["provenance"]["weights_checksum"] == plain["weights_checksum"]


def test_only_what_was_published_is_kept(
    client: httpx.Client, sealed: dict[str, Any], service: LiveService
) -> None:
    post(client, sealed)
    blob = next(path for path in service.data_dir.rglob(sealed["weights_checksum"]))
    assert blob.read_bytes() == encrypt(small_weights_bytes())


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"sede": 1}, "invalid-request"),
    "not Base64": ({"data": "*"}, "invalid-request"),
    "Base64 with a line break": ({"data": "QUJD\nQUJD"}, "invalid-request"),
    "data and data_url": ({"data_url": "https://example.com/x"}, "invalid-request"),
    "neither": ({"data": None}, "invalid-request"),
    "empty data": ({"data": ""}, "empty-data"),
    "a checksum for inline data": ({"data_checksum": "1" * 32}, "invalid-request"),
    "seed -1": ({"seed": -1}, "invalid-request"),
    "seed 2^64": ({"seed": 1 << 64}, "invalid-request"),
    "seed 1.5": ({"seed": 1.5}, "invalid-request"),
    "seed as text": ({"seed": "1"}, "invalid-request"),
    "seed true": ({"seed": True}, "invalid-request"),
    "key too short": ({"decryption_key": "abc"}, "invalid-key"),
    "key of a wrong alphabet": ({"decryption_key": "0OIl" * 11}, "invalid-key"),
    "key too long": ({"decryption_key": KEY * 2}, "invalid-key"),
    "key as a number": ({"decryption_key": 7}, "invalid-request"),
    "wrong key": ({"decryption_key": WRONG_KEY}, "decryption-failed"),
    "checksum of another file": ({"weights_checksum": "1" * 32}, "model-checksum-mismatch"),
    "checksum that is none": ({"weights_checksum": "nope"}, "invalid-request"),
    "size one too small": ({"weights_size": 18_919}, "model-size-mismatch"),
    "negative size": ({"weights_size": -1}, "invalid-request"),
    "URL that is none": ({"weights_url": "weights"}, "invalid-url"),
    "URL of a local file": ({"weights_url": "file:///etc/passwd"}, "invalid-url"),
    "empty URL": ({"weights_url": ""}, "invalid-request"),
    "zero target": ({"target_embedding": [0.0] * 16}, "zero-embedding"),
    "target too short": ({"target_embedding": [1.0] * 15}, "invalid-request"),
    "empty target": ({"target_embedding": []}, "invalid-request"),
    "target of text": ({"target_embedding": ["a"] * 16}, "invalid-request"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request(name: str, client: httpx.Client, sealed: dict[str, Any], service: LiveService) -> None:
    change, code = BAD_REQUESTS[name]
    kept = service.blobs()
    response = client.post("/eval", json={**sealed, **change})
    assert_problem(response, code)
    assert response.status_code == 422
    assert KEY not in response.text
    assert [blob for blob in service.blobs() if blob not in kept and is_partial(blob)] == []
    assert_golden(post(client, sealed))


def is_partial(name: str) -> bool:
    return "part" in name or "tmp" in name


WEIGHTS_GONE_WRONG: dict[str, tuple[bytes, str | None, str]] = {
    "zeros": (bytes(4096), None, "weights-invalid"),
    "zeros with a key": (bytes(4096), KEY, "decryption-failed"),
    "text": (b"<html>not found</html>" * 50, None, "weights-invalid"),
    "three bytes": (b"abc", None, "weights-invalid"),
    "no bytes": (b"", None, "weights-invalid"),
    "ciphertext without its key": (encrypt(small_weights_bytes()), None, "weights-invalid"),
    "plain weights with a key": (small_weights_bytes(), KEY, "decryption-failed"),
}


@pytest.mark.parametrize("name", WEIGHTS_GONE_WRONG)
def test_weights_gone_wrong(
    name: str, client: httpx.Client, files: FileServer, sealed: dict[str, Any]
) -> None:
    content, key, code = WEIGHTS_GONE_WRONG[name]
    body = {**request_for(files, "wrong.bin", content), "decryption_key": key}
    problem = assert_problem(client.post("/eval", json=body), code)
    assert (problem["fault"], problem["blob"], problem["retryable"]) == ("model_owner", "model", False)
    assert_golden(post(client, sealed))


def test_a_missing_tensor_is_named(client: httpx.Client, files: FileServer) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    del tensors["predictor.bias"]
    body = request_for(files, "missing.safetensors", safetensors_bytes(tensors))
    problem = assert_problem(client.post("/eval", json=body), "weights-invalid")
    assert "predictor.bias" in problem["detail"]


def test_a_wrong_shape_is_told(client: httpx.Client, files: FileServer) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors["predictor.weight"] = np.ascontiguousarray(tensors["predictor.weight"].T)
    body = request_for(files, "transposed.safetensors", safetensors_bytes(tensors))
    problem = assert_problem(client.post("/eval", json=body), "weights-invalid")
    assert "predictor.weight" in problem["detail"]
    assert "264" in problem["detail"]


def test_weights_that_give_nan(client: httpx.Client, files: FileServer, plain: dict[str, Any]) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors["predictor.bias"][3] = np.nan
    body = request_for(files, "nan.safetensors", safetensors_bytes(tensors))
    assert_problem(client.post("/eval", json=body), "non-finite-result")
    assert_golden(post(client, plain))


def test_a_missing_file_is_its_owners_fault(client: httpx.Client, plain: dict[str, Any]) -> None:
    missing = plain["weights_url"].replace("plain", "absent")
    response = client.post("/eval", json={**plain, "weights_url": missing, "weights_checksum": "1" * 32})
    problem = assert_problem(response, "model-unavailable")
    assert (response.status_code, problem["fault"], problem["retryable"]) == (502, "model_owner", True)


def test_a_refused_connection_is_the_owners_fault(client: httpx.Client, plain: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    body = {**plain, "weights_url": f"http://127.0.0.1:{port}/weights", "weights_checksum": "1" * 32}
    problem = assert_problem(client.post("/eval", json=body), "model-unavailable")
    assert (problem["fault"], problem["retryable"]) == ("model_owner", True)


def test_a_missing_data_file_is_the_submitters_fault(client: httpx.Client, plain: dict[str, Any]) -> None:
    body = {**plain, "data": None, "data_url": plain["weights_url"].replace("plain", "absent")}
    problem = assert_problem(client.post("/eval", json=body), "data-unavailable")
    assert (problem["fault"], problem["blob"]) == ("data_submitter", "data")


def test_data_over_the_limit(client: httpx.Client, plain: dict[str, Any], files: FileServer) -> None:
    large = bytes((1 << 20) + 1)
    inline = {**plain, "data": base64.b64encode(large).decode()}
    by_url = {**plain, "data": None, "data_url": files.publish("large.bin", large)}
    for body in (inline, by_url):
        assert assert_problem(client.post("/eval", json=body), "data-too-large")["status"] == 413
