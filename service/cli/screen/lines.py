"""The lines that `soma-eval screen` prints: those of `POST /screen`."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from service.errors import ScoringError
from service.scoring.screen import Id, ModelResult, PieceResult, Screen, ScreenSummary

OnLine = Callable[[dict[str, Any]], Awaitable[None]]
"""Takes one line. While it waits, for a reader that is slow, no further pieces are begun."""


def line_of(result: PieceResult, screen: Screen) -> dict[str, Any]:
    """What there is to say of one piece."""
    names = [model.id for model in screen.models]
    return {
        "piece": result.piece,
        "models": [_model(name, model) for name, model in zip(names, result.models, strict=False)],
        "targets": [
            {
                "id": target.id,
                "winner": None if found.winner is None else names[found.winner],
                "distance": found.distance,
                "hit": found.hit,
            }
            for target, found in zip(screen.targets, result.targets, strict=False)
        ],
        "error": error_of(result.error),
    }


def last_line(summary: ScreenSummary, error: ScoringError | None = None) -> dict[str, Any]:
    """The counts of all lines, and why the screen ended early."""
    return {"summary": asdict(summary), "error": error_of(error)}


def error_of(error: ScoringError | None) -> dict[str, Any] | None:
    """The error as the API has it."""
    if error is None:
        return None
    return {
        "code": error.full_code,
        "title": error.title,
        "detail": error.detail,
        "fault": error.fault,
        "blob": error.blob,
        "model_index": error.model_index,
        "retryable": error.retryable,
    }


def _model(name: Id, model: ModelResult) -> dict[str, Any]:
    result = model.result
    return {
        "id": name,
        "loss": None if result is None else result.loss,
        "cross_entropy": None if result is None else result.cross_entropy,
        "sig_reg": None if result is None else result.sig_reg,
        "embedding": None if result is None else result.embedding.tolist(),
        "attends_to_future": None if result is None else result.attends_to_future,
        "result_cached": model.was_kept,
        "error": error_of(model.error),
    }
