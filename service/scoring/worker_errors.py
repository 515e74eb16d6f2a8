"""What a failure of the worker pool means to a caller."""

from service.errors import (
    DecryptionFailed,
    EmptyData,
    EvaluationCrashesWorker,
    Fault,
    NonFiniteResult,
    NoWorker,
    OutOfMemory,
    OutOfResources,
    ScoringError,
    WeightsInvalid,
    WorkerCrashed,
)
from workers import errors as worker_errors


def to_scoring_error(error: worker_errors.WorkerError, data_fault: Fault) -> ScoringError:
    """The failure as a caller sees it. The most specific class first."""
    match error:
        case worker_errors.DecryptionFailed():
            return DecryptionFailed(error.detail)
        case worker_errors.WeightsInvalid():
            return WeightsInvalid(error.detail)
        case worker_errors.NonFiniteResult():
            return NonFiniteResult(error.detail)
        case worker_errors.EmptyData():
            return EmptyData(error.detail, fault=data_fault, blob="data")
        case worker_errors.EvaluationCrashesWorker():
            return EvaluationCrashesWorker(error.detail)
        case worker_errors.OutOfMemory():
            return OutOfMemory(error.detail)
        case worker_errors.NoWorker():
            return NoWorker(error.detail, retry_after_seconds=5.0)
        case worker_errors.WorkerCrashed():
            return WorkerCrashed(error.detail)
        case worker_errors.FileUnreadable():  # of the cache: it was whole when it was verified
            return OutOfResources(error.detail)
    raise TypeError(f"no row for {type(error).__name__}")
