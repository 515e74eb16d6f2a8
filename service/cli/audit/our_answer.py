"""Our own answer to the competition of a claim: from workers of this process, or from a running service."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.cli.audit.claim import Claim
from service.cli.service_client import ServiceClient, connect, no_service
from service.config import Settings
from service.scoring.results import CompetitionResult, OnProgress, Progress
from soma_eval.responses import ModelResult, ScoreResponse

Embedding = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What came out for one model; None where it has no such number, or we were not told."""

    loss: float | None = None
    distance: float | None = None
    embedding: Embedding | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class OurAnswer:
    """What came out of a competition."""

    winner: int
    near_tie: bool
    models: tuple[ModelAnswer, ...]


OnFraction = Callable[[float], None]
AnswerClaim = Callable[[Claim, OnFraction], Awaitable[OurAnswer]]
"""Says how far it is, 0 to 1, where it knows that. Raises a ScoringError."""


@asynccontextmanager
async def answers_from_here(settings: Settings) -> AsyncIterator[AnswerClaim]:
    """Evaluates with workers of this process. Raises a WorkerError where none can start, ForeignFolder, OSError."""
    from service.lifespan import open_private_scorer  # takes longer than all else that is imported

    async with open_private_scorer(settings) as scorer:

        async def answer(claim: Claim, on_fraction: OnFraction) -> OurAnswer:
            report = _reporting(len(claim.competition.models), on_fraction)
            return _of_result(await scorer.score(claim.competition, report))

        yield answer


@asynccontextmanager
async def answers_from_service(url: str, api_key: str | None) -> AsyncIterator[AnswerClaim]:
    """Lets a service evaluate. Raises BadUsage where the URL is none."""
    async with connect(url, api_key, compute_anew=True) as service:

        async def answer(claim: Claim, on_fraction: OnFraction) -> OurAnswer:
            return await _ask(service, claim)

        yield answer


def _reporting(num_models: int, on_fraction: OnFraction) -> OnProgress:
    """Says how far all models of a competition are."""
    fractions = [0.0] * num_models

    def report(progress: Progress) -> None:
        if progress.model_index is not None:
            is_over = progress.phase in ("done", "failed")
            fractions[progress.model_index] = 1.0 if is_over else progress.fraction or 0.0
            on_fraction(sum(fractions) / num_models)

    return report


def _of_result(found: CompetitionResult) -> OurAnswer:
    models = []
    for outcome in found.outcomes:
        error = None if outcome.error is None else f"{outcome.error.detail} ({outcome.error.full_code})"
        evaluation = outcome.evaluation
        if evaluation is None:
            models.append(ModelAnswer(error=error))
        else:
            result = evaluation.result
            models.append(ModelAnswer(result.loss, evaluation.distance, result.embedding, error))
    return OurAnswer(found.winner, found.near_tie, tuple(models))


async def _ask(service: ServiceClient, claim: Claim) -> OurAnswer:
    """Of the models that did not win, a service says neither the embedding nor more than loss and distance."""
    found = await service.post("/score", dict(claim.request), ScoreResponse)
    if found.winner >= len(found.models):
        raise no_service("what answers there is not soma-eval: its winner is none of its models")
    models = [_model(model) for model in found.models]
    embedding = np.array(found.embedding, dtype=np.float32)
    models[found.winner] = replace(models[found.winner], embedding=embedding)
    return OurAnswer(found.winner, found.near_tie, tuple(models))


def _model(found: ModelResult) -> ModelAnswer:
    error = None if found.error is None else f"{found.error.detail} ({found.error.code})"
    return ModelAnswer(found.loss, found.distance, None, error)
