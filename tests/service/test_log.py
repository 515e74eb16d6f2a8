"""An unexpected error is logged with where it was raised; neither its message nor local variables reach the log."""

import asyncio
import errno
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import base58
import httpx
import pytest
from structlog.testing import capture_logs

from service.config import Settings
from service.http_api.app import create_app
from service.jobs.database import in_memory_database
from service.jobs.jobs import JobService
from service.jobs.state_key import random_state_key
from service.lifespan import Components
from service.log import log_loop_error
from service.metrics import Metrics
from service.scoring.competition import Competition
from service.scoring.results import Evaluation, OnProgress, Progress
from service.scoring.scheduler import Scheduler
from tests.recipe import TEST_KEY

SECRET = "-".join(["secret", "canary"])  # its source line is not what is looked for

A_PROGRAM = """
import logging
import structlog
from service.log import configure_log

configure_log({log_format!r}, "info")

def fail(key):
    local = "-".join(["secret", "canary"])
    raise RuntimeError("a bug")

for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
    try:
        fail("-".join(["secret", "canary"]))
    except RuntimeError:
        log.exception("unexpected")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_local_variable(log_format: str) -> None:
    program = A_PROGRAM.format(log_format=log_format)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stderr.count("a bug") >= 2
    assert SECRET not in ended.stderr


async def _failing(*_: Any) -> Evaluation:
    raise RuntimeError(SECRET)


async def _without_descriptors(*_: Any) -> Evaluation:
    raise OSError(errno.EMFILE, SECRET)


async def _post_to(work: Callable[..., Awaitable[Evaluation]], tmp_path: Path) -> httpx.Response:
    components = SimpleNamespace(
        settings=Settings(data_dir=tmp_path),
        architecture={"embedding_dim": 16},
        metrics=Metrics(),
        closing=asyncio.Event(),
        scheduler=Scheduler(
            queue_size=1, num_workers=lambda: 1, max_downloads=1, kept_bytes=1, timeout_seconds=1.0
        ),
        scorer=SimpleNamespace(evaluate=work),
    )
    app = create_app(cast(Components, components))
    body = {
        "data": "AAAA",
        "weights_url": "https://publisher.example/w",
        "decryption_key": base58.b58encode(TEST_KEY).decode(),
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as client:
        return await client.post("/eval", json=body)


async def test_a_bug_under_an_http_request(tmp_path: Path) -> None:
    with capture_logs() as lines:
        response = await _post_to(_failing, tmp_path)
    assert response.status_code == 500
    assert response.json()["code"] == "internal-error"
    assert response.headers["x-request-id"] == response.json()["request_id"]
    _assert_logged_without_its_message(lines)


async def test_a_lack_of_descriptors_under_an_http_request_may_pass(tmp_path: Path) -> None:
    with capture_logs() as lines:
        response = await _post_to(_without_descriptors, tmp_path)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (503, "out-of-resources")
    assert (problem["fault"], problem["retryable"]) == ("service", True)
    assert response.headers["retry-after"]
    assert SECRET not in json.dumps(lines, default=str) + response.text


async def test_a_bug_under_a_job() -> None:
    async def work(_: Competition, on_progress: OnProgress, *, timeout_seconds: float) -> Evaluation:
        on_progress(Progress("admitted"))
        await asyncio.sleep(0)
        return await _failing()

    with capture_logs() as lines:
        database = in_memory_database()
        await database.start()
        scorer = SimpleNamespace(evaluate=work)
        admission = SimpleNamespace(timeout_seconds=60.0, num_free_places=1, draining=False)
        jobs = JobService(database, random_state_key(), scorer, admission)
        job = await jobs.submit("eval", Competition(b"data", (), seed=0))
        ended = [seen async for seen in jobs.follow(job.id) if seen][-1]
        await jobs.close()
        await database.close()
    assert (ended.state, ended.error and ended.error.code) == ("failed", "internal-error")
    _assert_logged_without_its_message(lines)
    assert lines[0]["job_id"] == job.id


async def test_errors_of_accepting_connections_are_rate_limited() -> None:
    context = {"message": "socket.accept()", "exception": OSError(errno.EMFILE, "Too many open files")}
    with capture_logs() as lines:
        for _ in range(1000):
            log_loop_error(asyncio.get_running_loop(), context)
    assert [line["reason"] for line in lines] == ["Too many open files"]


def _assert_logged_without_its_message(lines: Any) -> None:
    bugs = [line for line in lines if line["event"] == "unexpected error"]
    assert len(bugs) == 1
    assert bugs[0]["exception"] == "RuntimeError"
    assert Path(__file__).name in bugs[0]["where"][-1]
    assert SECRET not in json.dumps(lines, default=str)
