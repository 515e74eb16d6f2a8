"""The result of a request and the progress on the way to it: values, nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.errors import BlobKind, ScoringError
from workers.types import EvalResult

WeightsCached = Literal["disk", "device", "no"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one evaluation went, in seconds."""

    queue_seconds: float
    download_seconds: float
    load_seconds: float
    eval_seconds: float
    total_seconds: float
    weights_cached: WeightsCached
    """Where the weights were found: on the device, on disk, or nowhere yet."""
    result_cached: bool
    """Whether the result was kept from an earlier request: nothing was queued, loaded or computed for it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the numbers were made from, by which version, and when; the result says by which device and packages."""

    weights_checksum: str
    """As computed from the bytes received, not as promised."""
    data_checksum: str
    seed: int
    architecture_version: str
    numerics_version: str
    computed_at: datetime
    """UTC; before the request for a result that was kept."""
    architecture: str = "network"
    """Its name: `workers.architectures.ArchitectureConfig.name`."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one model is worth on the data."""

    result: EvalResult
    distance: float | None
    provenance: Provenance
    timings: Timings


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """One model's evaluation, or why there is none. With both, the evaluation has a loss and no distance."""

    evaluation: Evaluation | None = None
    error: ScoringError | None = None


@dataclass(frozen=True, slots=True)
class CompetitionResult:
    """The answer to a competition."""

    winner: int
    outcomes: tuple[ModelOutcome, ...]
    """One per model, in the order of the request."""
    margin: float | None
    """Loss of the second best less the winner's."""
    near_tie: bool

    @property
    def winning(self) -> Evaluation:
        """The winner's evaluation."""
        evaluation = self.outcomes[self.winner].evaluation
        assert evaluation is not None
        return evaluation


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one part of a request has come."""

    phase: Literal["admitted", "downloading", "queued", "loading", "evaluating", "done", "failed"]
    blob: BlobKind | None = None
    model_index: int | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_per_second: float | None = None
    batches_done: int | None = None
    num_batches: int | None = None
    fraction: float | None = None
    """Of the evaluation, 0 to 1, also within a batch that takes long."""
    is_here: bool = False
    """Whether the model's file is here, so that what it waits for is a device."""
    error: ScoringError | None = None
    """Of a model that failed, while the others of its competition go on."""

    @property
    def batches(self) -> float:
        """Batches that are done, with what is done of others."""
        return (
            (self.num_batches or 0) * self.fraction
            if self.fraction is not None
            else float(self.batches_done or 0)
        )


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """For callers that want only the result."""
