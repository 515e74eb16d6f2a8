"""Every failure a caller can see: a code, whose fault it is, whether to try again. No status codes here.

ScoringError
├── InvalidRequest               invalid-request             client
│   └── InvalidKey               invalid-key                 who gave the key
├── Unauthorized                 unauthorized                client
├── NotFound                     not-found                   client
├── MethodNotAllowed             method-not-allowed          client
├── BodyTooLarge                 body-too-large              client
├── JobNotFound                  job-not-found               client
├── IdempotencyKeyReused         idempotency-key-reused      client
├── BlobError                    of the data or of one model's weights; fault: who published it, or sent it
│   ├── InvalidUrl               invalid-url
│   ├── ForbiddenUrl             url-forbidden
│   ├── BlobTooLarge             {data,model}-too-large
│   ├── ChecksumMismatch         {data,model}-checksum-mismatch
│   ├── SizeMismatch             {data,model}-size-mismatch
│   ├── BlobUnavailable          {data,model}-unavailable    retryable
│   └── DownloadTimeout          download-timeout            retryable
├── SubmissionRejected            what these weights or this data are worth: nothing, the same everywhere
│   ├── DecryptionFailed         decryption-failed           model_owner
│   ├── WeightsInvalid           weights-invalid             model_owner
│   ├── NonFiniteResult          non-finite-result           model_owner
│   ├── ZeroEmbedding            zero-embedding              client (target) or model_owner
│   ├── EvaluationCrashesWorker  evaluation-crashes-worker   model_owner
│   └── EmptyData                empty-data                  who gave the data
└── ServiceTrouble               retryable, fault: service
    ├── QueueFull                queue-full                  with seconds to wait
    ├── Draining                 draining
    ├── NoWorker                 no-worker
    ├── DeadlineExceeded         deadline-exceeded
    ├── WorkerCrashed            worker-crashed
    ├── OutOfMemory              out-of-memory
    ├── InsufficientStorage      insufficient-storage
    ├── OutOfResources           out-of-resources            descriptors, threads, memory, ports, a disk that works
    ├── Interrupted              interrupted                 a job that a restart has ended
    └── InternalError            internal-error              our bug; not retryable

Messages are for people and carry no key, no URL, no address and no path.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import ClassVar, Literal, Self, get_args

Fault = Literal["client", "data_submitter", "model_owner", "service"]
BlobKind = Literal["data", "model"]


class ScoringError(Exception):
    """Base of every failure a caller can see."""

    code: ClassVar[str]
    """Names the failure; for a BlobError a template, see `full_code`."""
    title: ClassVar[str]
    """One line for people, the same for every occurrence."""
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        fault: Fault = "client",
        blob: BlobKind | None = None,
        model_index: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fault: Fault = fault
        self.blob: BlobKind | None = blob
        self.model_index = model_index
        self.retry_after_seconds = retry_after_seconds

    def with_model_index(self, index: int) -> Self:
        """The same failure, said of one model of a competition; requests that share a failure keep theirs."""
        named = type(self).__new__(type(self), *self.args)
        named.__dict__.update(self.__dict__)
        named.model_index = index
        return named

    @property
    def full_code(self) -> str:
        """The code on the wire: the template with the blob's kind filled in."""
        return self.code.format(blob=self.blob)


class InvalidRequest(ScoringError):
    """The request is not one this service understands."""

    code = "invalid-request"
    title = "The request is not valid"


class InvalidKey(InvalidRequest):
    """A decryption key is not 32 bytes in Base58."""

    code = "invalid-key"
    title = "A decryption key is not valid"


class Unauthorized(ScoringError):
    """The API key is missing or unknown."""

    code = "unauthorized"
    title = "An API key is needed"


class NotFound(ScoringError):
    """The service has nothing at this path."""

    code = "not-found"
    title = "There is nothing at this path"


class MethodNotAllowed(ScoringError):
    """The path exists, and takes other methods."""

    code = "method-not-allowed"
    title = "The method is not allowed here"


class BodyTooLarge(ScoringError):
    """The request's body is larger than the service reads."""

    code = "body-too-large"
    title = "The request is too large"


class JobNotFound(ScoringError):
    """No such job, or its result is no longer kept."""

    code = "job-not-found"
    title = "There is no such job"


class IdempotencyKeyReused(ScoringError):
    """Another request has this idempotency key."""

    code = "idempotency-key-reused"
    title = "The Idempotency-Key belongs to another request"


class BlobError(ScoringError):
    """Something is wrong with a published file; the party who published it is at fault."""

    def __init__(
        self, detail: str, *, blob: BlobKind, model_index: int | None = None, fault: Fault | None = None
    ) -> None:
        publisher: Fault = "data_submitter" if blob == "data" else "model_owner"
        super().__init__(detail, fault=fault or publisher, blob=blob, model_index=model_index)


class InvalidUrl(BlobError):
    """The URL is none this service would ever fetch."""

    code = "invalid-url"
    title = "A URL is not valid"


class ForbiddenUrl(BlobError):
    """The URL, or one it redirects to, leads where this service does not go."""

    code = "url-forbidden"
    title = "A URL leads to a forbidden address"


class BlobTooLarge(BlobError):
    """The file is larger than the service accepts."""

    code = "{blob}-too-large"
    title = "A file is too large"


class ChecksumMismatch(BlobError):
    """The bytes served are not those that were promised."""

    code = "{blob}-checksum-mismatch"
    title = "A file is not the one that was promised"


class SizeMismatch(BlobError):
    """The number of bytes served is not the one promised."""

    code = "{blob}-size-mismatch"
    title = "A file does not have the promised size"


class BlobUnavailable(BlobError):
    """The file could not be fetched."""

    code = "{blob}-unavailable"
    title = "A file could not be fetched"
    retryable = True


class DownloadTimeout(BlobError):
    """The file came too slowly."""

    code = "download-timeout"
    title = "A file came too slowly"
    retryable = True


class SubmissionRejected(ScoringError):
    """The verdict on these weights or this data; every validator reaches the same."""

    def __init__(
        self,
        detail: str,
        *,
        fault: Fault = "model_owner",
        blob: BlobKind | None = "model",
        model_index: int | None = None,
    ) -> None:
        super().__init__(detail, fault=fault, blob=blob, model_index=model_index)


class DecryptionFailed(SubmissionRejected):
    """The key does not fit these weights."""

    code = "decryption-failed"
    title = "The weights could not be decrypted"


class WeightsInvalid(SubmissionRejected):
    """The file is not what the network accepts as weights."""

    code = "weights-invalid"
    title = "The weights are not valid"


class NonFiniteResult(SubmissionRejected):
    """The loss or the embedding is NaN or infinite."""

    code = "non-finite-result"
    title = "The weights give no finite result"


class ZeroEmbedding(SubmissionRejected):
    """A zero vector has no direction, so no distance."""

    code = "zero-embedding"
    title = "The distance of a zero vector is undefined"


class EvaluationCrashesWorker(SubmissionRejected):
    """The evaluation ended two workers."""

    code = "evaluation-crashes-worker"
    title = "The evaluation ends every worker that tries it"


class EmptyData(SubmissionRejected):
    """There are no bytes to evaluate on."""

    code = "empty-data"
    title = "The data is empty"


class ServiceTrouble(ScoringError):
    """This service's trouble; nobody else is at fault, and another try may succeed."""

    retryable = True

    def __init__(
        self, detail: str, *, model_index: int | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(
            detail, fault="service", model_index=model_index, retry_after_seconds=retry_after_seconds
        )


class QueueFull(ServiceTrouble):
    """As many requests as the service holds are waiting already."""

    code = "queue-full"
    title = "The queue is full"


class Draining(ServiceTrouble):
    """The service is about to stop."""

    code = "draining"
    title = "The service is stopping"


class NoWorker(ServiceTrouble):
    """No worker is alive."""

    code = "no-worker"
    title = "No worker is ready"


class DeadlineExceeded(ServiceTrouble):
    """The request took longer than it may."""

    code = "deadline-exceeded"
    title = "The request took too long"


class WorkerCrashed(ServiceTrouble):
    """The worker died or froze under the request."""

    code = "worker-crashed"
    title = "A worker died"


class OutOfMemory(ServiceTrouble):
    """The device has too little memory for this evaluation."""

    code = "out-of-memory"
    title = "The device is out of memory"


class InsufficientStorage(ServiceTrouble):
    """The disk has no room for the file."""

    code = "insufficient-storage"
    title = "The disk is full"


class OutOfResources(ServiceTrouble):
    """This machine has no descriptor, thread, memory or port left, or its disk does not work."""

    code = "out-of-resources"
    title = "The machine is out of resources"


class Interrupted(ServiceTrouble):
    """The job was ended before it had a result, and this service cannot go on with it."""

    code = "interrupted"
    title = "The job was interrupted"


class InternalError(ServiceTrouble):
    """A bug of this service."""

    code = "internal-error"
    title = "The service has failed"
    retryable = False


_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_EXHAUSTED: dict[int, str] = {
    errno.EMFILE: "this machine is out of file descriptors",
    errno.ENFILE: "this machine is out of file descriptors",
    errno.ENOMEM: "this machine is out of memory",
    errno.EAGAIN: "this machine is out of threads or processes",
    errno.ENOBUFS: "this machine is out of network buffers",
    errno.EADDRNOTAVAIL: "this machine is out of network ports",
    **dict.fromkeys(
        (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENXIO, errno.ENODEV),
        "the disk of this machine cannot be read or written",
    ),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM),
        "a file or folder of this service is gone or cannot be used",
    ),
}
"""None of these errors is ever the doing of a server that we connect to."""


def exhaustion_of(error: BaseException) -> ServiceTrouble | None:
    """What this machine lacks, if that is what the exception, or one that it was raised from, says.

    Every exception of the system is judged here, and nowhere else, so that a lack of this machine's own is
    never held against a publisher. None for every other exception: a refused connection, an unknown host.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (trouble := _exhaustion_of_one(cause)) is not None:
            return trouble
        cause = cause.__cause__
    return None


def _exhaustion_of_one(error: BaseException) -> ServiceTrouble | None:
    match error:
        case MemoryError():
            return OutOfResources(_EXHAUSTED[errno.ENOMEM])
        case RuntimeError() if "can't start new thread" in str(error):
            return OutOfResources(_EXHAUSTED[errno.EAGAIN])
        # The numbers of these two are not those of errno.
        case ssl.SSLError():
            return None
        case socket.gaierror():
            is_ours = error.errno == socket.EAI_MEMORY
            return OutOfResources(_EXHAUSTED[errno.ENOMEM]) if is_ours else None
        case OSError() if error.errno in _DISK_FULL:
            return InsufficientStorage("the disk of this machine is full")
        case OSError() if error.errno in _EXHAUSTED:
            return OutOfResources(_EXHAUSTED[error.errno])
    return None


def all_codes() -> tuple[str, ...]:
    """Every code there is on the wire, sorted."""
    codes = {kind.code for kind in _descendants(ScoringError) if "code" in vars(kind)}
    return tuple(sorted({code.format(blob=blob) for code in codes for blob in get_args(BlobKind)}))


def _descendants(kind: type[ScoringError]) -> Iterator[type[ScoringError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
