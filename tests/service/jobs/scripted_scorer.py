"""A scorer that does what the test says: it admits by a real scheduler, and waits until it may end."""

import asyncio
from datetime import UTC, datetime

import numpy as np

from service.blob import BlobRef
from service.scoring.competition import Competition, ModelManifest
from service.scoring.results import (
    CompetitionResult,
    Evaluation,
    ModelOutcome,
    OnProgress,
    Progress,
    Provenance,
    Timings,
    ignore_progress,
)
from service.scoring.scheduler import Scheduler
from workers.types import EvalResult

KEY = b"canary-key-of-exactly-32-bytes!!"
URL = "https://publisher.example/weights.enc?token=canary-token"


def competition(seed: int = 0, num_models: int = 1) -> Competition:
    """A request full of secrets."""
    models = (ModelManifest(BlobRef(URL), KEY),) * num_models
    return Competition(b"canary-data", models, seed=seed, target_embedding=(0.1, 0.2))


class ScriptedScorer:
    """Every evaluation reports one batch, waits for `may_end`, and has the loss of its seed."""

    def __init__(self, queue_size: int = 64, timeout_seconds: float = 60.0) -> None:
        self.scheduler = Scheduler(
            queue_size=queue_size,
            num_workers=lambda: 4,
            max_downloads=4,
            kept_bytes=1 << 30,
            timeout_seconds=timeout_seconds,
        )
        self.may_end = asyncio.Event()
        self.begun: list[Competition] = []
        self.num_ended = 0
        self.error: Exception | None = None
        """What is raised in place of the next results."""
        self.refusal: Exception | None = None
        """What is raised before admission."""
        self.timeouts: list[float | None] = []

    async def score(
        self,
        competition: Competition,
        on_progress: OnProgress = ignore_progress,
        *,
        timeout_seconds: float | None = None,
    ) -> CompetitionResult:
        """See service.scoring.scorer."""
        if self.refusal is not None:
            raise self.refusal
        async with self.scheduler.admit(timeout_seconds=timeout_seconds):
            self.timeouts.append(timeout_seconds)
            on_progress(Progress("admitted"))
            self.begun.append(competition)
            on_progress(Progress("evaluating", model_index=0, batches_done=1, num_batches=4))
            await self.may_end.wait()
            if self.error is not None:
                raise self.error
            self.num_ended += 1
            outcomes = tuple(ModelOutcome(evaluation(competition.seed)) for _ in competition.models)
            return CompetitionResult(0, outcomes, None, near_tie=False)

    async def evaluate(
        self,
        competition: Competition,
        on_progress: OnProgress = ignore_progress,
        *,
        timeout_seconds: float | None = None,
    ) -> Evaluation:
        """See service.scoring.scorer."""
        return (await self.score(competition, on_progress, timeout_seconds=timeout_seconds)).winning


def evaluation(seed: int = 0) -> Evaluation:
    """Numbers that a decimal text could lose bits of."""
    result = EvalResult(
        loss=seed + 0.1 + 0.2,
        cross_entropy=1 / 3,
        sig_reg=1e-300,
        embedding=np.array([0.1, -1e-40, 3.4e38], dtype=np.float32),
        attends_to_future=False,
        num_sequences=1,
        num_batches=1,
        precision="float32",
        device="cpu",
        load_seconds=0.1,
        eval_seconds=0.2,
        versions={"torch": "none"},
    )
    return Evaluation(
        result=result,
        distance=None,
        provenance=Provenance("w", "d", seed, "1", "1", datetime(2026, 1, 2, tzinfo=UTC)),
        timings=Timings(0.1, 0.2, 0.3, 0.4, 0.5, "disk", result_cached=False),
    )
