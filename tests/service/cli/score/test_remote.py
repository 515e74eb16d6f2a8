"""What answers at --url and is no soma-eval is named for what it is."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.cli.score.held_out import find_data
from service.cli.score.question import Question, parse_candidates
from service.cli.score.remote import score_remotely
from service.cli.score.run import exit_code
from service.cli.score.score_sheet import ScoreSheet


@contextmanager
def server_that_says(status: int, content: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


GOOD_ANSWER: dict[str, Any] = {
    "loss": 5.0,
    "cross_entropy": 5.0,
    "sig_reg": 0.0,
    "embedding": [1.0, 2.0],
    "distance": None,
    "num_sequences": 1,
    "num_batches": 1,
    "attends_to_future": False,
    "provenance": {
        "weights_checksum": "w",
        "data_checksum": "d",
        "seed": 0,
        "architecture_version": "1",
        "precision": "float32",
        "device": "cpu",
        "versions": {"torch": "2"},
        "numerics_version": "1",
        "computed_at": "2026-01-02T03:04:05Z",
    },
    "timings": {
        "queue_seconds": 0.0,
        "download_seconds": 0.0,
        "load_seconds": 0.0,
        "eval_seconds": 0.1,
        "total_seconds": 0.1,
        "weights_cached": "no",
        "result_cached": True,
    },
}
ODD_MEMBERS: dict[str, Any] = {
    "loss": "5",
    "cross_entropy": None,
    "sig_reg": [1],
    "distance": {},
    "attends_to_future": 1,
    "embedding": [1.0, None],
    "timings": 3,
}


def ask(url: str, prepared: Path) -> ScoreSheet:
    with find_data(str(prepared / "short")) as found:
        question = Question(parse_candidates(["https://host/a"], []), found.files, seeds=(0,))
        return asyncio.run(score_remotely(question, url, None, lambda _: None))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!doctype html><title>Login</title>", "it sent an HTML page"),
        (b"", "it sent nothing"),
        (b"plain words", "it sent no JSON"),
        (b"\xff\xfe", "it sent no JSON"),
        (b"[" * 100_000, "it sent no JSON"),
        (b"[]", "an empty list"),
        (b"null", "missing or null"),
        (b"3", "a number"),
        (b"{}", "loss: field required"),
        *((json.dumps(GOOD_ANSWER | {name: value}).encode(), name) for name, value in ODD_MEMBERS.items()),
        (json.dumps(GOOD_ANSWER | {"provenance": {"computed_at": "now"}}).encode(), "provenance: "),
        (json.dumps(GOOD_ANSWER | {"loss": 10**400}).encode(), "loss: input should be a finite number"),
        (json.dumps(GOOD_ANSWER | {"embedding": [1e300]}).encode(), "embedding: input should be less than"),
        (json.dumps(GOOD_ANSWER | {"embedding": []}).encode(), "embedding: list should have at least 1 item"),
        (json.dumps(GOOD_ANSWER | {"loss": float("nan")}).encode(), "loss: input should be a finite number"),
    ],
)
def test_what_answers_and_is_no_service_is_named_for_what_it_is(
    prepared: Path, content: bytes, reason: str
) -> None:
    with server_that_says(200, content) as url:
        scored = ask(url, prepared)
    error = scored.outcomes[0].error
    assert error is not None
    assert error.full_code == "no-service"
    assert "is not soma-eval" in error.detail
    assert reason in error.detail
    assert exit_code(scored) == 3


def test_a_good_answer_is_taken(prepared: Path) -> None:
    with server_that_says(200, json.dumps(GOOD_ANSWER).encode()) as url:
        scored = ask(url, prepared)
    assert scored.outcomes[0].loss == 5.0
    run = scored.outcomes[0].runs[0]
    assert (run.device, run.numerics_version, run.result_cached) == ("cpu", "1", True)
    assert run.computed_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "problem",
    [
        b"{}",
        b'{"code": 3, "detail": [], "fault": {}, "retryable": "yes"}',
        b'{"fault": "service", "code": null}',
    ],
)
def test_an_odd_error_is_the_machines(prepared: Path, problem: bytes) -> None:
    with server_that_says(500, problem) as url:
        assert exit_code(ask(url, prepared)) == 3


def test_what_does_not_answer_is_named_for_what_it_is(prepared: Path) -> None:
    with server_that_says(200, b"{}") as url:
        pass
    refused = ask(url, prepared).outcomes[0].error
    with server_that_says(200, b"{}") as url:
        no_tls = ask(url.replace("http:", "https:"), prepared).outcomes[0].error
    assert refused is not None
    assert no_tls is not None
    assert refused.detail == "nothing listens there"
    assert "https" in no_tls.detail
