"""A service that looks busy: four GPUs, jobs at every stage, an hour of traffic; for pictures and checks of the page.

The pool and the past are made up; all that shows them is real.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from service.config import ExplicitSettings
from service.errors import Fault
from service.last_hour import LastHour
from service.leaderboards import FOLDER_NAME, Board, FailedRow, RankedRow
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION, competition, request_for, weights_that_give_nan
from tests.in_process_pool import InProcessPool, eval_result
from tests.in_process_service import InProcessService
from tests.recipe import small_weights_bytes
from workers.errors import NonFiniteResult, WeightsInvalid
from workers.queue_entry import QueueEntry
from workers.types import (
    DeviceStatus,
    EvalJob,
    EvalProgress,
    EvalResult,
    OnEvalProgress,
    RunningTask,
    WorkerMemory,
)

GIB = 1 << 30
_BATCHES = 41


class BusyPool(InProcessPool):
    """Four GPUs, one of them out of service. Evaluations of `stuck` weights stop in the middle."""

    def __init__(self) -> None:
        super().__init__(default=eval_result(loss=4.578473))
        self.stuck: dict[str, int] = {}
        """Checksum of weights: the batch at which they stay."""
        self.is_whole = False
        """Whether all four are in service."""

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """Like the in-process pool's, unless the weights are stuck."""
        report = on_progress or (lambda progress: None)
        if job.weights_checksum in self.stuck:
            if entry:
                entry.begin()
            batch = self.stuck[job.weights_checksum]
            phase = "evaluating" if batch else "loading"
            report(EvalProgress(phase, batch, _BATCHES))  # type: ignore[arg-type]
            await asyncio.Event().wait()
        await asyncio.sleep(0.5)
        result = await super().evaluate(job, on_progress, entry)
        return replace(
            result,
            cross_entropy=result.loss - 0.0255,
            sig_reg=1.273,
            num_sequences=648,
            num_batches=_BATCHES,
            device="cuda:0,cuda:1",
            load_seconds=0.1,
            eval_seconds=0.4,
            versions={"torch": "2.13.0+cu130", "soma-arrgen": "0.1.0"},
            cross_entropy_along=make_up_batches(result.loss - 0.0255),
        )

    def status(self) -> list[DeviceStatus]:
        """Of its four devices."""
        memory = WorkerMemory(total=80 * GIB, used=23 * GIB, weights=int(13.6 * GIB), weights_limit=58 * GIB)
        checksums = frozenset(
            {"4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi", "8qbHbw2BbbTHBW1sbeqakYXVKRQM8Ne7pLK7m6CVfeR"}
        )
        sound = DeviceStatus(
            "cuda:0",
            ready=True,
            busy=True,
            pid=100,
            restarts=0,
            device_name="NVIDIA H100 80GB HBM3",
            self_test_age_seconds=19.0,
            memory=memory,
            resident=checksums,
            task=RunningTask("4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi", "evaluating", 13, 0, 21),
        )
        assert sound.task is not None
        second = replace(
            sound,
            device="cuda:1",
            self_test_age_seconds=143.0,
            task=replace(sound.task, batch=31, start=21, stop=41),
        )
        third = replace(
            sound,
            device="cuda:2",
            restarts=2,
            restarts_by_reason={"hung": 2},
            last_death="made no progress for 180 s",
            self_test_age_seconds=402.0,
            memory=replace(memory, used=6 * GIB, weights=int(4.5 * GIB)),
            resident=frozenset(list(checksums)[:1]),
            task=None,
            busy=False,
        )
        fourth = replace(
            third,
            device="cuda:3",
            ready=False,
            restarts=3,
            restarts_by_reason={"fault": 3},
            trouble="out of service: 3 evaluations in a row ended its worker (the last was ended by SIGSEGV); "
            "is tested after 60 s",
            memory=None,
            resident=frozenset(),
            self_test_age_seconds=871.0,
        )
        if self.is_whole:
            idle = [replace(third, device=f"cuda:{i}", restarts=0, restarts_by_reason={}) for i in (2, 3)]
            return [sound, second, *idle]
        return [sound, second, third, fourth]


@contextmanager
def busy_service(folder: Path, files: FileServer, **settings: Any) -> Iterator[InProcessService]:
    """A busy service for the length of the block."""
    pool = BusyPool()
    service = InProcessService(pool)
    given: dict[str, Any] = {
        "port": 0,
        "grpc_port": "off",
        "data_dir": folder,
        "small_model": True,
        "allow_http": True,
        "allow_private_addresses": True,
        "cache_max_bytes": 4 << 20,
        **settings,
    }
    with service.running(ExplicitSettings(**given), None):
        _send_jobs(service, pool, files)
        assert service.components is not None
        make_up_an_hour(service.components.metrics.last_hour)
        write_board(folder, made_up_board())
        yield service


def _send_jobs(service: InProcessService, pool: BusyPool, files: FileServer) -> None:
    """Some that end in different ways, and some that do not end."""
    good = request_for(files, "plain.safetensors", small_weights_bytes())
    bad = request_for(files, "bad.safetensors", b"no weights")
    absent = {**good, "weights_url": f"{files.base_url}/absent", "weights_checksum": None}
    contest = competition(files, GOLDEN_COMPETITION)
    nan = weights_that_give_nan(files)
    for manifest, loss in zip(contest["model_manifests"], (4.578473, 4.601925, 4.731008), strict=True):
        pool._answers[manifest["checksum"]] = eval_result(loss)
    pool._answers[bad["weights_checksum"]] = WeightsInvalid("the header is not JSON")
    pool._answers[nan["checksum"]] = NonFiniteResult("the loss is not a number")
    mixed = {**contest, "model_manifests": [*contest["model_manifests"], nan]}
    with service.client() as client:

        def post(path: str, body: dict[str, Any], *, wait: bool = True) -> None:
            response = client.post(path, json=body, headers={"Prefer": "respond-async"})
            assert response.status_code == 202, response.text
            if wait:
                client.get(f"{response.headers['location']}/events")

        for path, body in (
            ("/eval", good),
            ("/eval", bad),
            ("/score", mixed),
            ("/eval", absent),
            ("/eval", good),
        ):
            post(path, body)
        first, second, third = contest["model_manifests"][:3]
        pool.stuck = {first["checksum"]: 13, second["checksum"]: 31, third["checksum"]: 0}
        post("/score", contest, wait=False)
        stuck = request_for(files, "stuck.safetensors", b"large weights")
        pool.stuck[stuck["weights_checksum"]] = 7
        post("/eval", stuck, wait=False)
        time.sleep(0.5)


def jobs_of(service: InProcessService) -> dict[str, str]:
    """The paths of a competition that runs, of one that was won, and of an evaluation whose file was not there."""
    with service.client() as client:
        jobs = client.get("/jobs", params={"limit": 100}).json()["jobs"]
    found = {
        "running": lambda job: job["kind"] == "score" and job["state"] == "running",
        "won": lambda job: job["kind"] == "score" and job["state"] == "succeeded",
        "failed": lambda job: job["error"] and job["error"]["code"] == "model-unavailable",
    }
    return {name: f"/jobs/{next(filter(test, jobs))['id']}" for name, test in found.items()}


def write_board(data_dir: Path, board: Board) -> None:
    """As a watch does."""
    (data_dir / FOLDER_NAME).mkdir(exist_ok=True)
    (data_dir / FOLDER_NAME / "board.json").write_text(json.dumps(asdict(board)))


def made_up_board() -> Board:
    """Of a training run with one checkpoint that was not written to its end."""
    dice = random.Random(3)
    losses = sorted(2.55 + 3.1 * 0.82**step + dice.gauss(0, 0.01) for step in range(1, 15))
    ranked = [
        RankedRow(f"step-{4000 * (14 - i):06}.safetensors", loss, 0.0171, loss - 0.0262, 1.31, False)
        for i, loss in enumerate(losses)
    ]
    failed = FailedRow("step-060000.safetensors", "file-incomplete", "A file is incomplete")
    return Board(
        folder="run-7",
        question="262,144 bytes of held-out.txt, seeds 0 to 2; loss = cross-entropy + 0.02 SIGReg, lower is better",
        changed=time.time() - 47,
        ranked=tuple(ranked),
        failed=(failed,),
        num_ranked=len(ranked),
        num_failed=1,
    )


def make_up_batches(cross_entropy: float) -> tuple[float, ...]:
    """Cross-entropies of batches around their mean; the data is easier to predict behind its first third."""
    dice = random.Random(5)
    return tuple(
        cross_entropy + 0.05 * (1.4 if batch < _BATCHES / 3 else -0.7) + dice.gauss(0, 0.02)
        for batch in range(_BATCHES)
    )


def make_up_an_hour(last_hour: LastHour) -> None:
    """Requests of an hour, more in its middle, the same each time."""
    dice = random.Random(7)
    now = time.time()
    shown = last_hour._clock
    causes: list[tuple[Fault, str, float]] = [
        ("model_owner", "model-unavailable", 0.06),
        ("model_owner", "weights-invalid", 0.04),
        ("data_submitter", "download-timeout", 0.015),
        ("client", "invalid-request", 0.02),
        ("service", "queue-full", 0.0),
    ]
    assert {fault for fault, _, _ in causes} <= set(get_args(Fault))
    last_hour._minutes.clear()
    for ago in range(59, -1, -1):
        last_hour._clock = lambda ago=ago: now - 60 * ago  # type: ignore[misc]
        peak = 1.0 if 18 <= ago <= 25 else 0.0
        for _ in range(int(dice.gauss(7 + 4 * (1 - abs(ago - 24) / 36) + 6 * peak, 1.5))):
            failed = next(
                ((f, c) for f, c, p in causes if dice.random() < p + (0.2 * peak if f == "service" else 0)),
                None,
            )
            if failed:
                last_hour.note(failed[1], failed[0])
                continue
            last_hour.note("ok", None)
            last_hour.note_phase("queue", dice.expovariate(1 / (0.4 + 9 * peak)))
            last_hour.note_phase("download", dice.choice([0.0, 0.0, dice.lognormvariate(3.1, 0.4)]))
            last_hour.note_phase("load", dice.choice([0.0, dice.lognormvariate(0.2, 0.3)]))
            last_hour.note_phase("eval", dice.lognormvariate(1.2, 0.25))
    last_hour._clock = shown
