"""`serve --architecture`: other parameters through a real service, against an independent float64 arithmetic.

Older documents of the network describe 32 layers, sequences of 8,192, batches of 32 and 1,024 slices.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from soma_eval import Client
from tests.file_server import FileServer
from tests.live_service import LiveService, live_service
from tests.recipe import encrypt, make_data, make_weights, safetensors_bytes
from tests.workers.v1.float64_evaluation import evaluate

pytestmark = pytest.mark.slow

SEED = 5
NARROW = {"embedding_dim": 16, "pwff_hidden_dim": 32, "num_heads": 4}


def weights_of(architecture: Mapping[str, int]) -> dict[str, Any]:
    config = {**NARROW, **architecture, "vocab_size": 264}
    return dict(make_weights(config, {"scheme": "scaled", "seed": 7}))


def serve(folder: Path, architecture: Mapping[str, int], name: str = "architecture.json") -> Any:
    """A service of it. All services of one folder keep their results in one place."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({**NARROW, **architecture}))
    return live_service(folder, "--full-model", "--architecture", str(folder / name))


def ask(service: LiveService, url: str, data: bytes) -> dict[str, Any]:
    with service.client() as http:
        request = {"data": base64.b64encode(data).decode(), "weights_url": url, "seed": SEED}
        response = http.post("/eval", json=request, timeout=600.0)
        assert response.status_code == httpx.codes.OK, response.text
        return dict(response.json())


def assert_right(answer: Mapping[str, Any], architecture: Mapping[str, int], data: bytes) -> None:
    loss, embedding = evaluate(
        weights_of(architecture),
        data,
        SEED,
        num_layers=architecture["num_layers"],
        num_heads=architecture.get("num_heads", NARROW["num_heads"]),
        max_seq_len=architecture["max_seq_len"],
        batch_size=architecture["batch_size"],
        slices=architecture["sig_reg_slices"],
    )
    assert answer["loss"] == pytest.approx(loss, rel=1e-5)
    assert np.abs(np.array(answer["embedding"]) - embedding).max() <= 2e-5 * max(1, np.abs(embedding).max())
    assert answer["num_sequences"] == -(-len(data) // architecture["max_seq_len"])
    assert answer["num_batches"] == -(-answer["num_sequences"] // architecture["batch_size"])


SHORT = {"num_layers": 32, "max_seq_len": 64, "batch_size": 32, "sig_reg_slices": 1024}
SHORT_DATA = make_data({"pattern": "hash", "size": 64 * 33 + 5, "seed": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def short_url(files: FileServer) -> str:
    return files.publish("short.enc", safetensors_bytes(weights_of(SHORT)))


@pytest.fixture(scope="module")
def short_service(folder: Path) -> Iterator[LiveService]:
    with serve(folder, SHORT) as running:
        yield running


def test_eval_and_info(short_service: LiveService, short_url: str) -> None:
    answer = ask(short_service, short_url, SHORT_DATA)
    assert_right(answer, SHORT, SHORT_DATA)
    with short_service.client() as http:
        info = http.get("/info").json()
    assert info["architecture"].items() >= {**NARROW, **SHORT, "vocab_size": 264}.items()
    name = info["architecture_name"]
    assert name not in ("network", "small")
    assert answer["provenance"]["architecture"] == name


def test_a_screen_counts_batches_of_this_architecture(short_service: LiveService, short_url: str) -> None:
    """One piece fills a batch exactly; one more byte makes two."""
    full = SHORT_DATA[: 64 * 32]
    pieces = [{"data": base64.b64encode(data).decode()} for data in (full, SHORT_DATA, full[:100], full[:7])]
    body = {"pieces": pieces, "models": [{"url": short_url}], "targets": [], "seed": SEED}
    with short_service.client() as http:
        *lines, _last = map(json.loads, http.post("/screen", json=body).text.splitlines())
    losses = {line["piece"]: line["models"][0]["loss"] for line in lines}
    for index, data in enumerate((full, SHORT_DATA, full[:100], full[:7])):
        assert losses[index] == pytest.approx(ask(short_service, short_url, data)["loss"], rel=1e-6)


def test_weights_of_another_shape_are_refused(short_service: LiveService, files: FileServer) -> None:
    other = safetensors_bytes(weights_of({"num_layers": 5}))
    url = files.publish("five-layers.enc", other[:-4])
    with short_service.client() as http:
        refused = http.post("/eval", json={"data": "AAAA", "weights_url": url}).json()
    assert refused["code"] == "weights-invalid"


def test_a_result_is_kept_for_its_own_architecture(folder: Path, short_url: str) -> None:
    """The same weights fit both: only the slices differ."""
    data = SHORT_DATA[:100]
    answers = []
    for slices in 1024, 256, 1024:
        with serve(folder / "kept", {**SHORT, "sig_reg_slices": slices}) as running:
            answers.append(ask(running, short_url, data))
    assert [answer["timings"]["result_cached"] for answer in answers] == [False, False, True]
    assert answers[0]["loss"] == answers[2]["loss"] != answers[1]["loss"]


@pytest.mark.timeout(600)  # float64 takes long for sequences of that length, and so there are few layers
def test_older_parameters_and_progress_within_their_one_batch(folder: Path, files: FileServer) -> None:
    older = {"num_layers": 6, "max_seq_len": 8192, "batch_size": 32, "sig_reg_slices": 1024, "num_heads": 1}
    data = make_data({"pattern": "hash", "size": 5000, "seed": 3})
    weights: Any = {
        "weights_url": files.publish("older.enc", encrypt(safetensors_bytes(weights_of(older)))),
        "decryption_key": bytes(range(32)),
    }
    with serve(folder / "older", older) as running, Client(running.http_url) as client:
        whole_batch = client.submit_eval(data=bytes(32 * 8192), seed=SEED, **weights)
        fractions = (update.progress.models[0].fraction for update in client.follow(whole_batch))
        assert any(fraction is not None and 0 < fraction < 1 for fraction in fractions)
        client.cancel(whole_batch)  # half a minute of work
        answer = client.eval(data=data, seed=SEED, **weights).model_dump()
    assert_right(answer, older, data)
    assert answer["num_batches"] == 1
