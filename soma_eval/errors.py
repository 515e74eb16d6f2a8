"""What the clients raise: one class for each error code of the service, and a few for what is no answer of it.

SomaEvalError
├── ConnectionFailed                no connection, or it broke before the whole answer was here
│   └── TimedOut                    no connection, or no whole answer, in time
├── UnexpectedResponse              what answered is not soma-eval, or another version of it
├── JobCancelled                    somebody cancelled the job
└── ApiError                        the service answered with an error; it has the code, the fault and more
    ├── RequestError                a mistake in the request
    │   ├── InvalidRequest              invalid-request
    │   ├── InvalidKey                  invalid-key
    │   ├── Unauthorized                unauthorized
    │   ├── NotFound                    not-found
    │   ├── MethodNotAllowed            method-not-allowed
    │   ├── BodyTooLarge                body-too-large
    │   ├── JobNotFound                 job-not-found
    │   └── IdempotencyKeyReused        idempotency-key-reused
    ├── SubmissionError             the data or the weights are at fault, the same on every validator
    │   ├── InvalidUrl                  invalid-url
    │   ├── ForbiddenUrl                url-forbidden
    │   ├── DataTooLarge                data-too-large
    │   ├── ModelTooLarge               model-too-large
    │   ├── DataChecksumMismatch        data-checksum-mismatch
    │   ├── ModelChecksumMismatch       model-checksum-mismatch
    │   ├── DataSizeMismatch            data-size-mismatch
    │   ├── ModelSizeMismatch           model-size-mismatch
    │   ├── DecryptionFailed            decryption-failed
    │   ├── WeightsInvalid              weights-invalid
    │   ├── NonFiniteResult             non-finite-result
    │   ├── ZeroEmbedding               zero-embedding
    │   ├── EvaluationCrashesWorker     evaluation-crashes-worker
    │   └── EmptyData                   empty-data
    ├── TemporaryError              another try may succeed
    │   ├── DataUnavailable             data-unavailable
    │   ├── ModelUnavailable            model-unavailable
    │   ├── DownloadTimeout             download-timeout
    │   ├── QueueFull                   queue-full
    │   ├── Draining                    draining
    │   ├── NoWorker                    no-worker
    │   ├── DeadlineExceeded            deadline-exceeded
    │   ├── WorkerCrashed               worker-crashed
    │   ├── OutOfMemory                 out-of-memory
    │   ├── InsufficientStorage         insufficient-storage
    │   ├── OutOfResources              out-of-resources
    │   └── Interrupted                 interrupted
    └── ServiceError                the service has failed, and another try will not help
        └── InternalError               internal-error

A code that this version does not know is raised as one of ApiError's four children: TemporaryError where it is
retryable, else by whose fault it is. Messages carry no key and no URL.
"""

from collections.abc import Iterator


class SomaEvalError(Exception):
    """Base of everything that the clients raise, wrong arguments excepted."""

    retryable: bool = False
    """Whether the same call may be sent again without doing its work twice, and may then succeed."""


class ConnectionFailed(SomaEvalError):
    """No connection to the service, or it broke before the whole answer was here."""

    def __init__(self, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.retryable = retryable


class TimedOut(ConnectionFailed):
    """No connection, or no whole answer, in time."""


class UnexpectedResponse(SomaEvalError):
    """What answered is not soma-eval, or not a version of it that this client understands."""


class JobCancelled(SomaEvalError):
    """Somebody cancelled the job."""


class ApiError(SomaEvalError):
    """The service answered with an error."""

    code: str = ""
    """Names the failure."""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        fault: str = "service",
        blob: str | None = None,
        model_index: int | None = None,
        retryable: bool = False,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.fault = fault
        """Who can mend it: client, data_submitter, model_owner or service."""
        self.blob = blob
        """data or model, where the error is about one of them."""
        self.model_index = model_index
        """Which model of a competition, counted from 0."""
        self.retryable = retryable
        self.status = status
        """The HTTP status; None for an error of a job or of one model."""
        self.request_id = request_id
        """Names the request in the service's log."""
        self.retry_after_seconds = retry_after_seconds
        """How long the service asks to wait before another try."""

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"


class RequestError(ApiError):
    """A mistake in the request; sent again as it is, it fails again."""


class InvalidRequest(RequestError):
    """The request is not one the service understands."""

    code = "invalid-request"


class InvalidKey(RequestError):
    """A decryption key is not 32 bytes in Base58."""

    code = "invalid-key"


class Unauthorized(RequestError):
    """The API key is missing or unknown."""

    code = "unauthorized"


class NotFound(RequestError):
    """The service has nothing at this path."""

    code = "not-found"


class MethodNotAllowed(RequestError):
    """The path exists, and takes other methods."""

    code = "method-not-allowed"


class BodyTooLarge(RequestError):
    """The request is larger than the service reads; publish the data, and give its URL."""

    code = "body-too-large"


class JobNotFound(RequestError):
    """No such job, or its result is no longer kept."""

    code = "job-not-found"


class IdempotencyKeyReused(RequestError):
    """Another request has this idempotency key."""

    code = "idempotency-key-reused"


class SubmissionError(ApiError):
    """The data or the weights are at fault; every validator finds the same."""


class InvalidUrl(SubmissionError):
    """The URL is none that the service would ever fetch."""

    code = "invalid-url"


class ForbiddenUrl(SubmissionError):
    """The URL, or one it redirects to, leads where the service does not go."""

    code = "url-forbidden"


class DataTooLarge(SubmissionError):
    """The data are larger than the service accepts."""

    code = "data-too-large"


class ModelTooLarge(SubmissionError):
    """The weights are larger than the service accepts."""

    code = "model-too-large"


class DataChecksumMismatch(SubmissionError):
    """The data served are not those that were promised."""

    code = "data-checksum-mismatch"


class ModelChecksumMismatch(SubmissionError):
    """The weights served are not those that were promised."""

    code = "model-checksum-mismatch"


class DataSizeMismatch(SubmissionError):
    """The data served do not have the promised size."""

    code = "data-size-mismatch"


class ModelSizeMismatch(SubmissionError):
    """The weights served do not have the promised size."""

    code = "model-size-mismatch"


class DecryptionFailed(SubmissionError):
    """The key does not fit the weights."""

    code = "decryption-failed"


class WeightsInvalid(SubmissionError):
    """The file is not what the network accepts as weights."""

    code = "weights-invalid"


class NonFiniteResult(SubmissionError):
    """The loss or the embedding is NaN or infinite."""

    code = "non-finite-result"


class ZeroEmbedding(SubmissionError):
    """A zero vector has no direction, so no distance."""

    code = "zero-embedding"


class EvaluationCrashesWorker(SubmissionError):
    """The evaluation ended two workers."""

    code = "evaluation-crashes-worker"


class EmptyData(SubmissionError):
    """There are no bytes to evaluate on."""

    code = "empty-data"


class TemporaryError(ApiError):
    """Another try may succeed; the clients have made some before they raise it."""


class DataUnavailable(TemporaryError):
    """The service could not fetch the data."""

    code = "data-unavailable"


class ModelUnavailable(TemporaryError):
    """The service could not fetch the weights."""

    code = "model-unavailable"


class DownloadTimeout(TemporaryError):
    """The data or the weights were served too slowly."""

    code = "download-timeout"


class QueueFull(TemporaryError):
    """As many requests as the service holds are waiting already."""

    code = "queue-full"


class Draining(TemporaryError):
    """The service is about to stop."""

    code = "draining"


class NoWorker(TemporaryError):
    """The service has no worker that is ready."""

    code = "no-worker"


class DeadlineExceeded(TemporaryError):
    """The request took longer than the service allows."""

    code = "deadline-exceeded"


class WorkerCrashed(TemporaryError):
    """The worker died or froze under the request."""

    code = "worker-crashed"


class OutOfMemory(TemporaryError):
    """The service's device has too little memory for this evaluation."""

    code = "out-of-memory"


class InsufficientStorage(TemporaryError):
    """The service's disk is full."""

    code = "insufficient-storage"


class OutOfResources(TemporaryError):
    """The service's machine has no descriptor, thread, memory or port left, or its disk does not work."""

    code = "out-of-resources"


class Interrupted(TemporaryError):
    """The job was ended before it had a result, and the service cannot go on with it."""

    code = "interrupted"


class ServiceError(ApiError):
    """The service has failed, and another try will not help."""


class InternalError(ServiceError):
    """A bug of the service; please report it with the request id."""

    code = "internal-error"


_CLASS_OF_FAULT: dict[str, type[ApiError]] = {
    "client": RequestError,
    "data_submitter": SubmissionError,
    "model_owner": SubmissionError,
}


def class_of(code: str, fault: str, retryable: bool) -> type[ApiError]:
    """The class of an error code; for an unknown one, the class of such errors."""
    if code in CLASS_OF_CODE:
        return CLASS_OF_CODE[code]
    return TemporaryError if retryable else _CLASS_OF_FAULT.get(fault, ServiceError)


def _descendants(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


CLASS_OF_CODE: dict[str, type[ApiError]] = {kind.code: kind for kind in _descendants(ApiError) if kind.code}
"""Every error code that this version knows."""
