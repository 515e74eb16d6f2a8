"""What a failure of the worker pool means to a caller."""

from collections.abc import Callable

from service.errors import (
    DecryptionFailed,
    EmptyData,
    EvaluationCrashesWorker,
    Fault,
    InsufficientStorage,
    NonFiniteResult,
    NoWorker,
    OutOfMemory,
    OutOfResources,
    ScoringError,
    WeightsInvalid,
    WorkerCrashed,
)
from workers import errors as worker_errors

_MEANINGS: dict[type[worker_errors.WorkerError], Callable[[str], ScoringError]] = {
    worker_errors.DecryptionFailed: DecryptionFailed,
    worker_errors.WeightsInvalid: WeightsInvalid,
    worker_errors.NonFiniteResult: NonFiniteResult,
    worker_errors.EvaluationCrashesWorker: EvaluationCrashesWorker,
    worker_errors.OutOfMemory: OutOfMemory,
    worker_errors.WorkerCrashed: WorkerCrashed,
    worker_errors.StorageFull: InsufficientStorage,
    worker_errors.FileUnreadable: OutOfResources,  # of the cache: it was whole when it was verified
}


def to_scoring_error(error: worker_errors.WorkerError, data_fault: Fault) -> ScoringError:
    """The failure as a caller sees it."""
    if isinstance(error, worker_errors.EmptyData):
        return EmptyData(error.detail, fault=data_fault, blob="data")
    if isinstance(error, worker_errors.NoWorker):
        return NoWorker(error.detail, retry_after_seconds=5.0)
    for kind, meaning in _MEANINGS.items():
        if isinstance(error, kind):
            return meaning(error.detail)
    raise TypeError(f"no row for {type(error).__name__}")
