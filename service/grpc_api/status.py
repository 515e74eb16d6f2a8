"""The gRPC status and message of every error.

Validators look for words in the message of an error, and punish the submitter of the data when they find them.
So two messages alone contain these words, NOT_AVAILABLE and HASH_MISMATCH, and only errors about the data have
them. All other messages are fixed: they quote no URL and nothing else of the request.
"""

import re
from dataclasses import dataclass

from grpc import StatusCode

from service import errors
from service.errors import InternalError, InvalidRequest, ScoringError

NOT_AVAILABLE = "data not available"
HASH_MISMATCH = "data hash mismatch"


@dataclass(frozen=True, slots=True)
class Reply:
    """The status and message of one class of errors."""

    status: StatusCode
    message: str
    message_for_data: str | None = None
    """In place of `message` when the error is about the data."""


REPLIES: dict[type[ScoringError], Reply] = {
    errors.InvalidRequest: Reply(StatusCode.INVALID_ARGUMENT, "the request is not valid"),
    errors.InvalidKey: Reply(StatusCode.INVALID_ARGUMENT, "a decryption key is not 32 bytes in Base58"),
    errors.Unauthorized: Reply(StatusCode.INTERNAL, "the caller is not known"),
    errors.NotFound: Reply(StatusCode.INTERNAL, "there is nothing at this path"),
    errors.MethodNotAllowed: Reply(StatusCode.INTERNAL, "the method is not allowed"),
    errors.BodyTooLarge: Reply(StatusCode.INVALID_ARGUMENT, "the request is too large"),
    errors.JobNotFound: Reply(StatusCode.INTERNAL, "there is no such job"),
    errors.IdempotencyKeyReused: Reply(StatusCode.INTERNAL, "the idempotency key belongs to another request"),
    # For data that cannot be fetched the network knows one message, whatever the reason.
    errors.InvalidUrl: Reply(
        StatusCode.INVALID_ARGUMENT, "the address of the weights is not valid", NOT_AVAILABLE
    ),
    errors.ForbiddenUrl: Reply(StatusCode.INTERNAL, "the address of the weights is forbidden", NOT_AVAILABLE),
    errors.BlobUnavailable: Reply(StatusCode.INTERNAL, "the weights could not be fetched", NOT_AVAILABLE),
    errors.DownloadTimeout: Reply(StatusCode.INTERNAL, "the weights came too slowly", NOT_AVAILABLE),
    # A limit of this service, so no fraud.
    errors.BlobTooLarge: Reply(
        StatusCode.INTERNAL,
        "the weights are larger than this service takes",
        "the data is larger than this service takes",
    ),
    errors.ChecksumMismatch: Reply(
        StatusCode.INTERNAL, "the weights are not the bytes that were promised", HASH_MISMATCH
    ),
    errors.SizeMismatch: Reply(
        StatusCode.INTERNAL,
        "the weights do not have the promised size",
        "the data does not have the promised size",
    ),
    errors.DecryptionFailed: Reply(StatusCode.INTERNAL, "the weights could not be decrypted"),
    errors.WeightsInvalid: Reply(StatusCode.INTERNAL, "the weights are not valid"),
    errors.NonFiniteResult: Reply(StatusCode.INTERNAL, "the weights give no finite result"),
    errors.ZeroEmbedding: Reply(StatusCode.INTERNAL, "the distance of a zero vector is undefined"),
    errors.EvaluationCrashesWorker: Reply(
        StatusCode.INTERNAL, "the evaluation ends every worker that tries it"
    ),
    errors.EmptyData: Reply(StatusCode.INTERNAL, "the data is empty"),
    errors.QueueFull: Reply(StatusCode.RESOURCE_EXHAUSTED, "the queue is full"),
    errors.Draining: Reply(StatusCode.UNAVAILABLE, "the service is stopping"),
    errors.NoWorker: Reply(StatusCode.INTERNAL, "no worker is ready"),
    errors.DeadlineExceeded: Reply(StatusCode.DEADLINE_EXCEEDED, "the request took too long"),
    errors.WorkerCrashed: Reply(StatusCode.INTERNAL, "a worker died under the request"),
    errors.OutOfMemory: Reply(StatusCode.INTERNAL, "the device is out of memory"),
    errors.InsufficientStorage: Reply(StatusCode.INTERNAL, "the disk is full"),
    errors.OutOfResources: Reply(StatusCode.INTERNAL, "this machine is out of resources"),
    errors.Interrupted: Reply(StatusCode.INTERNAL, "the job was interrupted"),
    errors.InternalError: Reply(StatusCode.INTERNAL, "the service has failed"),
}
"""One row per error; a class without a row has that of its nearest parent with one."""

_DEFAULT = REPLIES[InternalError]

_PLAIN = re.compile(r"[A-Za-z0-9_ ,;()\[\]-]{1,160}")
_FRAUD_WORDS = re.compile("not available|unavailable|hash mismatch|checksum", re.IGNORECASE)
_LONGEST_WORD = 24


def status_and_message(error: ScoringError) -> tuple[StatusCode, str]:
    """The status and message that a client receives for this error."""
    reply = next((REPLIES[cls] for cls in type(error).__mro__ if cls in REPLIES), _DEFAULT)
    if error.blob == "data" and reply.message_for_data is not None:
        return reply.status, reply.message_for_data
    message = reply.message
    if error.model_index is not None:
        message += f" (model {int(error.model_index)})"
    if type(error) is InvalidRequest and _may_be_quoted(error.detail):
        message += f": {error.detail}"
    return reply.status, message


def _may_be_quoted(detail: str) -> bool:
    """Whether it is words and numbers alone: no URL, nothing as long as a key, none of the words of fraud."""
    return (
        _PLAIN.fullmatch(detail) is not None
        and _FRAUD_WORDS.search(detail) is None
        and max(map(len, detail.split()), default=0) <= _LONGEST_WORD
    )
