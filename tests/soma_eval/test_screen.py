"""A screen by both clients, against a real service."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from soma_eval import Client, ModelManifest, ScreenModel, ScreenPiece, ScreenTarget
from soma_eval.errors import DecryptionFailed, EmptyData, InvalidRequest
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_EVALUATION as GOLDEN
from tests.golden_requests import manifest
from tests.in_process_service import in_process_service
from tests.live_service import LiveService
from tests.postgres import Proxy
from tests.recipe import TEST_KEY, make_data
from tests.soma_eval.clients import MakeClient

DATA = make_data(GOLDEN.data)


@pytest.fixture
def question(evaluation: dict[str, Any], files: FileServer) -> dict[str, Any]:
    """One good model, one whose key is missing, a target that every piece hits and one that none does."""
    url = evaluation["weights_url"]
    near = GOLDEN.embedding.tolist()
    return {
        "pieces": [
            DATA,
            ScreenPiece(b"", id="empty"),
            ScreenPiece(data_url=files.publish("screen-data.bin", DATA), id="published"),
        ],
        "models": [ScreenModel(url, decryption_key=TEST_KEY, id="good"), ScreenModel(url, id="no-key")],
        "targets": [
            ScreenTarget(near, 0.5, model_ids=["good"], id="near"),
            ScreenTarget([-number for number in near], 0.5),
        ],
        "seed": GOLDEN.seed,
    }


def test_every_piece_has_its_line(remote: Client, question: dict[str, Any]) -> None:
    with remote.screen(**question) as screening:
        lines = {line.piece: line for line in screening}
    for name in (0, "published"):
        good, without_key = lines[name].models
        assert good.loss == pytest.approx(GOLDEN.loss, rel=1e-6)
        assert good.embedding == pytest.approx(GOLDEN.embedding.tolist(), abs=1e-5)
        assert without_key.error is not None
        assert without_key.error.code == "weights-invalid"
        assert [(target.id, target.winner, target.hit) for target in lines[name].targets] == [
            ("near", "good", True),
            (1, "good", False),
        ]
    empty = lines["empty"].error
    assert empty is not None
    with pytest.raises(EmptyData):
        raise empty.to_exception()
    assert screening.summary is not None
    assert (screening.summary.pieces, screening.summary.failed, screening.summary.hits) == (3, 1, 2)


def test_a_manifest_is_a_model_too(
    remote: Client, evaluation: dict[str, Any], question: dict[str, Any]
) -> None:
    wrong = ModelManifest(evaluation["weights_url"], "1" * 32, 1, bytes(32))
    with remote.screen(pieces=[DATA], models=[question["models"][0], wrong]) as screening:
        (line,) = screening
    assert line.models[0].loss is not None
    error = line.models[1].error
    assert error is not None
    assert error.code.startswith("model-")
    assert not isinstance(error.to_exception(), DecryptionFailed)


def test_what_makes_no_sense_is_refused_before_the_first_line(
    remote: Client, question: dict[str, Any]
) -> None:
    screening = remote.screen(**{**question, "targets": [ScreenTarget([1.0], 0.5)]})
    with pytest.raises(InvalidRequest, match="16 finite numbers"):
        next(screening)


@pytest.mark.slow
def test_a_lost_connection_computes_nothing_twice(
    make_client: MakeClient, files: FileServer, tmp_path: Path
) -> None:
    """Lines of 40 KB: more than the buffers of a connection hold together."""
    num_pieces, in_hand = 300, 4 * 16
    published = manifest(files, "client-screen.safetensors", b"good weights")
    question: dict[str, Any] = {
        "pieces": [b"piece %d" % i for i in range(num_pieces)],
        "models": [ScreenModel(published["url"])],
        "targets": [ScreenTarget([1.0] * 16, 0.1)] * 500,
    }
    with in_process_service(tmp_path, max_kept_results=1000) as service:
        host, port = service.http_url.removeprefix("http://").split(":")
        proxy = Proxy((host, int(port)))
        with make_client(f"http://127.0.0.1:{proxy.port}").screen(**question) as screening:
            pieces = [next(screening).piece for _ in range(3)]
            proxy.close()
            proxy.open()
            pieces += [line.piece for line in screening]
            assert screening.summary is not None
            assert screening.summary.pieces == num_pieces
        proxy.close()
        assert sorted(map(int, pieces)) == list(range(num_pieces))
        assert num_pieces <= sum(len(job.pieces) for job in service.pool.jobs) <= num_pieces + in_hand


def test_closing_it_stops_the_work(remote: Client, service: LiveService, question: dict[str, Any]) -> None:
    pieces = [bytes([i % 251]) * 1024 * 16 for i in range(400)]
    with remote.screen(**{**question, "pieces": pieces}) as screening:
        next(screening)
    end = time.monotonic() + 60
    with service.client() as http:
        while "soma_eval_requests_admitted 0.0" not in http.get("/metrics").text or is_busy(http):
            assert time.monotonic() < end, "the screen goes on"
            time.sleep(0.05)


def is_busy(http: httpx.Client) -> bool:
    (device,) = http.get("/info").json()["devices"]
    return bool(device["busy"])
