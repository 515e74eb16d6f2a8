"""What this machine lacks costs a request its answer for now, and is held against nobody."""

import base64
import errno
import os
import resource
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from service.errors import BlobUnavailable, DecryptionFailed, NoWorker, OutOfResources, ScoringError
from service.metrics import Metrics
from service.scoring.competition import Competition, ModelManifest
from service.scoring.evaluator import Evaluator
from service.scoring.kept_results import NoKeptResults, ServedModel
from service.scoring.limits import Limits
from service.scoring.results import Progress
from service.scoring.scheduler import Scheduler
from service.scoring.scorer import Scorer
from service.scoring.task_errors import first_of_ours
from tests.file_server import FileServer
from tests.golden_requests import assert_golden, request_for
from tests.golden_requests import post_eval as post
from tests.live_service import LiveService
from tests.problems import assert_problem
from tests.recipe import small_weights_bytes
from tests.service.delivery import Delivery, delivery
from workers.architectures import config_of, load_architecture
from workers.pool import WorkerPool


@contextmanager
def no_descriptor_left(service: LiveService) -> Iterator[None]:
    """Idle connections hold all that the process may open; those that are open go on."""
    pid = service.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    address = httpx.URL(service.http_url)
    with ExitStack() as idle:
        open_now = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(open_now) + 1, hard))
        try:
            for _ in range(max(open_now) + 1 - len(open_now)):
                idle.enter_context(socket.create_connection((address.host, address.port or 0)))
            while len(os.listdir(f"/proc/{pid}/fd")) <= max(open_now):
                pass
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_left(service: LiveService, client: httpx.Client, files: FileServer) -> None:
    known = request_for(files, "known.safetensors", small_weights_bytes())
    post(client, known)
    with no_descriptor_left(service):
        new_data = base64.b64encode(secrets.token_bytes(64)).decode()
        response = client.post("/eval", json={**known, "data": new_data})
        problem = assert_problem(response, "out-of-resources")
        assert (response.status_code, problem["fault"], problem["retryable"]) == (503, "service", True)
        assert response.headers["retry-after"]
    assert_golden(post(client, known))


def test_a_disk_that_does_not_work(service: LiveService, client: httpx.Client, files: FileServer) -> None:
    request = request_for(files, "known.safetensors", small_weights_bytes())
    post(client, request)
    folder = service.data_dir / "partial"
    folder.rename(service.data_dir / "away")
    try:
        assert_problem(client.post("/eval", json=request), "out-of-resources")
        end = time.monotonic() + 60.0
        while (ready := client.get("/ready")).status_code == 200 and time.monotonic() < end:
            time.sleep(0.05)
        assert (ready.status_code, ready.json()["code"]) == (503, "out-of-resources")
    finally:
        (service.data_dir / "away").rename(folder)
    while client.get("/ready").status_code != 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert_golden(post(client, request))


@pytest.mark.parametrize(
    "lack",
    [
        RuntimeError("can't start new thread"),
        MemoryError(),
        OSError(errno.EMFILE, "no"),
        OSError(errno.EIO, "no"),
    ],
    ids=repr,
)
async def test_a_lack_anywhere_under_a_request(lack: Exception, tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        with pytest.raises(OutOfResources) as caught:
            await scorer_over(d, lack).score(competition(d))
    assert (caught.value.fault, caught.value.retryable) == ("service", True)


async def test_a_failing_listener_costs_no_answer(tmp_path: Path) -> None:
    def failing(progress: Progress) -> None:
        raise ValueError

    async with delivery(tmp_path) as d:
        with pytest.raises(NoWorker):  # what the pool says, and not what the listener does
            await scorer_over(d, NoWorker("none")).score(competition(d), failing)


def competition(d: Delivery) -> Competition:
    return Competition(data=b"data", models=(ModelManifest(d.blob()),) * 2, seed=0)


def scorer_over(d: Delivery, failure: Exception) -> Scorer:
    """A scorer whose pool does nothing but fail."""

    async def evaluate(*_: object) -> None:
        raise failure

    scheduler = Scheduler(
        queue_size=1, num_workers=lambda: 1, max_downloads=2, kept_bytes=64 << 20, timeout_seconds=60.0
    )
    limits = Limits(
        architecture=config_of(load_architecture("1"), small_model=True),
        max_data_bytes=1 << 20,
        max_model_bytes=1 << 20,
        max_models=2,
        architecture_version="1",
    )
    pool = cast(WorkerPool, SimpleNamespace(evaluate=evaluate, status=list))
    evaluator = Evaluator(pool, NoKeptResults(), ServedModel("1", {}, "float32"), Metrics())
    return Scorer(d.cache, scheduler, evaluator, limits, Metrics())


@pytest.mark.parametrize("ours", [NoWorker("none"), OSError(errno.EMFILE, "no"), MemoryError()], ids=repr)
def test_of_errors_that_come_at_once_our_own_is_raised(ours: Exception) -> None:
    theirs: list[ScoringError] = [BlobUnavailable("no", blob="data"), DecryptionFailed("no")]
    assert first_of_ours([*theirs, ours]) is ours
    assert first_of_ours([ours, *theirs]) is ours
    assert first_of_ours(theirs) is theirs[0]
