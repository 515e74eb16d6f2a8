"""Requests made from the golden vectors, with their files published on a file server, and the expected answer."""

import base64
from typing import Any

import base58
import httpx
import numpy as np
import pytest

from service.cli.encryption import commitment_of
from tests.file_server import FileServer
from tests.recipe import (
    SMALL_CONFIG,
    TEST_KEY,
    GoldenCompetition,
    encrypt,
    golden_cases,
    golden_competitions,
    make_data,
    make_weights,
    safetensors_bytes,
    small_weights_bytes,
)

KEY = base58.b58encode(TEST_KEY).decode()
"""`TEST_KEY` as requests spell it."""

GOLDEN_EVALUATION = golden_cases()["small-short"]
GOLDEN_COMPETITION = golden_competitions()["competition-three"]


def request_for(files: FileServer, name: str, content: bytes) -> dict[str, Any]:
    """A valid /eval request: the data of `GOLDEN_EVALUATION` inline, and weights published under that name."""
    weights = manifest(files, name, content)
    return {
        "data": base64.b64encode(make_data(GOLDEN_EVALUATION.data)).decode(),
        "weights_url": weights["url"],
        "weights_checksum": weights["checksum"],
        "weights_size": weights["size"],
        "seed": GOLDEN_EVALUATION.seed,
    }


def post_eval(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Send an /eval request that must succeed; returns the answer."""
    response = client.post("/eval", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def assert_golden(answer: dict[str, Any]) -> None:
    """The answer to /eval has the loss and the embedding of `GOLDEN_EVALUATION`."""
    assert answer["loss"] == pytest.approx(GOLDEN_EVALUATION.loss, rel=1e-5)
    assert np.abs(np.array(answer["embedding"]) - GOLDEN_EVALUATION.embedding).max() <= 2e-5


def competition(files: FileServer, golden: GoldenCompetition) -> dict[str, Any]:
    """The golden competition as a /score request: data by URL, every model encrypted."""
    data = manifest(files, f"{golden.name}.bin", make_data(golden.data))
    return {
        "data_url": data["url"],
        "data_checksum": data["checksum"],
        "data_size": data["size"],
        "model_manifests": [
            manifest(files, f"{golden.name}-{i}.enc", encrypt(small_weights_bytes(recipe)), KEY)
            for i, recipe in enumerate(golden.models)
        ],
        "target_embedding": golden.target.tolist(),
        "seed": golden.seed,
    }


def manifest(files: FileServer, name: str, content: bytes, key: str | None = None) -> dict[str, Any]:
    """Publish a file; returns its manifest as /score takes it."""
    url = files.publish(name, content)
    commitment = commitment_of(files.folder / name)
    return {"url": url, "checksum": commitment.checksum, "size": commitment.size, "decryption_key": key}


def weights_that_give_nan(files: FileServer) -> dict[str, Any]:
    """The manifest of weights whose loss is not a number."""
    tensors = make_weights(SMALL_CONFIG, GOLDEN_COMPETITION.models[0])
    tensors["predictor.bias"][:] = np.nan
    return manifest(files, "nan.safetensors", safetensors_bytes(tensors))


def absent(files: FileServer) -> dict[str, Any]:
    """The manifest of a file that the server does not have."""
    return {**manifest(files, "known.bin", b"known"), "url": f"{files.base_url}/absent", "checksum": "1" * 32}
