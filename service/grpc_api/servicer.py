"""The network's own door: `scoring.Scoring` over gRPC, in BCS. Errors become a status and words by one table.

Validators look for words in the message of a failure, and punish the data's submitter when they find them.
So two sentences and no others carry such words, NOT_AVAILABLE and HASH_MISMATCH, and they are said of the data
only. The rest is a fixed vocabulary: nothing that came in with the request, and no URL, is ever quoted.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc
import structlog
from grpc import StatusCode

from service import errors
from service.blob import BlobRef
from service.checksum import is_checksum
from service.errors import InternalError, InvalidRequest, QueueFull, ScoringError, exhaustion_of
from service.grpc_api.bcs import BcsError, HealthRequest, HealthResponse, ScoreRequest, ScoreResponse
from service.log import log_bug
from service.metrics import Metrics
from service.scoring.competition import MAX_MANIFESTS, Competition, competitors
from service.scoring.results import CompetitionResult
from service.shutdown import Shutdown

SERVICE = "scoring.Scoring"
MAX_MESSAGE_BYTES = 1 << 20
MESSAGE_SECONDS = 15.0
"""How long a request's message may take to arrive, from its headers on."""
MAX_MESSAGES_ARRIVING = 128
"""Requests whose message may be on its way at once: they hold up to MAX_MESSAGE_BYTES each."""
MAX_STREAMS = 128
"""Requests of one connection at once; a client keeps more to itself until one has ended."""
IDLE_SECONDS = 60.0
"""A connection without a request is closed after this time."""
NOT_AVAILABLE = "data not available"
HASH_MISMATCH = "data hash mismatch"


T = TypeVar("T")

log = structlog.get_logger(__name__)


class CompetitionScorer(Protocol):
    """What this door needs of the scorer."""

    async def score(self, competition: Competition) -> CompetitionResult:
        """Decide the competition. Raises ScoringError; stops its work when cancelled."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is told of one class of errors."""

    status: StatusCode
    words: str
    words_for_data: str | None = None
    """In place of `words` when it is the data that the error is about."""


ANSWERS: dict[type[ScoringError], Answer] = {
    errors.InvalidRequest: Answer(StatusCode.INVALID_ARGUMENT, "the request is not valid"),
    errors.InvalidKey: Answer(StatusCode.INVALID_ARGUMENT, "a decryption key is not 32 bytes in Base58"),
    errors.Unauthorized: Answer(StatusCode.INTERNAL, "the caller is not known"),
    errors.NotFound: Answer(StatusCode.INTERNAL, "there is nothing at this path"),
    errors.MethodNotAllowed: Answer(StatusCode.INTERNAL, "the method is not allowed"),
    errors.BodyTooLarge: Answer(StatusCode.INVALID_ARGUMENT, "the request is too large"),
    errors.JobNotFound: Answer(StatusCode.INTERNAL, "there is no such job"),
    # Where the data is nowhere to be had, it does not matter to the network why.
    errors.InvalidUrl: Answer(
        StatusCode.INVALID_ARGUMENT, "the address of the weights is not valid", NOT_AVAILABLE
    ),
    errors.ForbiddenUrl: Answer(
        StatusCode.INTERNAL, "the address of the weights is forbidden", NOT_AVAILABLE
    ),
    errors.BlobUnavailable: Answer(StatusCode.INTERNAL, "the weights could not be fetched", NOT_AVAILABLE),
    errors.DownloadTimeout: Answer(StatusCode.INTERNAL, "the weights came too slowly", NOT_AVAILABLE),
    # Our limit, and nobody's fraud.
    errors.BlobTooLarge: Answer(
        StatusCode.INTERNAL,
        "the weights are larger than this service takes",
        "the data is larger than this service takes",
    ),
    errors.ChecksumMismatch: Answer(
        StatusCode.INTERNAL, "the weights are not the bytes that were promised", HASH_MISMATCH
    ),
    errors.SizeMismatch: Answer(
        StatusCode.INTERNAL,
        "the weights do not have the promised size",
        "the data does not have the promised size",
    ),
    errors.DecryptionFailed: Answer(StatusCode.INTERNAL, "the weights could not be decrypted"),
    errors.WeightsInvalid: Answer(StatusCode.INTERNAL, "the weights are not valid"),
    errors.NonFiniteResult: Answer(StatusCode.INTERNAL, "the weights give no finite result"),
    errors.ZeroEmbedding: Answer(StatusCode.INTERNAL, "the distance of a zero vector is undefined"),
    errors.EvaluationCrashesWorker: Answer(
        StatusCode.INTERNAL, "the evaluation ends every worker that tries it"
    ),
    errors.EmptyData: Answer(StatusCode.INTERNAL, "the data is empty"),
    errors.QueueFull: Answer(StatusCode.RESOURCE_EXHAUSTED, "the queue is full"),
    errors.Draining: Answer(StatusCode.UNAVAILABLE, "the service is stopping"),
    errors.NoWorker: Answer(StatusCode.INTERNAL, "no worker is ready"),
    errors.DeadlineExceeded: Answer(StatusCode.DEADLINE_EXCEEDED, "the request took too long"),
    errors.WorkerCrashed: Answer(StatusCode.INTERNAL, "a worker died under the request"),
    errors.OutOfMemory: Answer(StatusCode.INTERNAL, "the device is out of memory"),
    errors.InsufficientStorage: Answer(StatusCode.INTERNAL, "the disk is full"),
    errors.OutOfResources: Answer(StatusCode.INTERNAL, "this machine is out of resources"),
    errors.InternalError: Answer(StatusCode.INTERNAL, "the service has failed"),
}
"""One row for every class that is raised; a class without a row is told as its nearest parent with one."""

_OTHERWISE = ANSWERS[InternalError]

_PLAIN = re.compile(r"[A-Za-z0-9_ ,;()\[\]-]{1,160}")
_FRAUD_WORDS = re.compile("not available|unavailable|hash mismatch|checksum", re.IGNORECASE)
_LONGEST_WORD = 24


def status_and_words(error: ScoringError) -> tuple[StatusCode, str]:
    """What the caller is told of this error."""
    answer = next((ANSWERS[cls] for cls in type(error).__mro__ if cls in ANSWERS), _OTHERWISE)
    if error.blob == "data" and answer.words_for_data is not None:
        return answer.status, answer.words_for_data
    words = answer.words
    if error.model_index is not None:
        words += f" (model {int(error.model_index)})"
    if type(error) is InvalidRequest and _is_harmless(error.detail):
        words += f": {error.detail}"
    return answer.status, words


def _is_harmless(detail: str) -> bool:
    """Whether a detail may be told: words and numbers only, so no URL, and none as long as a key."""
    return (
        _PLAIN.fullmatch(detail) is not None
        and _FRAUD_WORDS.search(detail) is None
        and max(map(len, detail.split()), default=0) <= _LONGEST_WORD
    )


@asynccontextmanager
async def serve_grpc(
    scorer: CompetitionScorer,
    *,
    host: str,
    port: int,
    is_ready: Callable[[], bool],
    metrics: Metrics,
    max_models: int = MAX_MANIFESTS,
    max_connections: int = 1024,
    max_messages_arriving: int = MAX_MESSAGES_ARRIVING,
    message_seconds: float = MESSAGE_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
    grace_seconds: float = 5.0,
    shutdown: Shutdown | None = None,
) -> AsyncIterator[int]:
    """The API open for the length of the block, given its port (a free one if 0 is asked for).

    A caller that leaves, or whose deadline passes, ends its work. A connection above `max_connections` is
    closed at once. At the end no new calls are taken, and those still running after `grace_seconds`, or when
    the shutdown is urgent, are cancelled. Raises OSError when the address is taken.
    """

    async def score(message: bytes) -> bytes:
        competition = competition_of(_decoded(ScoreRequest.decode, message), max_models)
        return response_of(await scorer.score(competition)).encode()

    async def health(message: bytes) -> bytes:
        _decoded(HealthRequest.decode, message)
        return HealthResponse(ok=is_ready()).encode()

    server = grpc.aio.server(options=_options(max_connections, idle_seconds))
    arrivals = _Arrivals(message_seconds, max_messages_arriving)
    methods = {
        "Score": _method("Score", score, arrivals, metrics),
        "Health": _method("Health", health, arrivals, metrics),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound_port = server.add_insecure_port(address)
    except RuntimeError as error:
        await server.stop(None)
        raise OSError(
            f"gRPC cannot listen on {host} port {port}, which may be taken: choose another with --grpc-port, "
            "or `--grpc-port off`"
        ) from error
    await server.start()
    try:
        yield bound_port
    finally:
        await _stop(server, grace_seconds, shutdown or Shutdown())


async def _stop(server: grpc.aio.Server, grace_seconds: float, shutdown: Shutdown) -> None:
    """Let running calls end within the grace; cancel them once the shutdown is urgent."""
    async with (
        asyncio.TaskGroup() as group,
        shutdown.when_urgent(lambda: group.create_task(server.stop(None))),
    ):
        await server.stop(grace_seconds)


def _options(max_connections: int, idle_seconds: float) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),  # also of what a compressed one unfolds to
        ("grpc.so_reuseport", 0),  # else a second service could take the same port, and every other call
        # A caller whose machine vanishes without a word is noticed, and its work ended.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # callers may ask the same of us
        # What callers may hold without asking for anything is bounded: connections, streams, headers.
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", int(idle_seconds * 1000)),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
    )


class _Arrivals:
    """Requests whose message is on its way: each for a limited time, so many at once, the oldest ends first."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._waiting: dict[asyncio.Timeout, None] = {}

    async def message(self, messages: AsyncIterator[bytes]) -> bytes:
        """The first message. Raises InvalidRequest where none comes in time, QueueFull to make room for another."""
        deadline = asyncio.timeout(self._seconds)
        try:
            async with deadline:
                self._make_room()
                self._waiting[deadline] = None
                return await anext(messages)
        except StopAsyncIteration:
            raise InvalidRequest("there is no message") from None
        except TimeoutError:
            if deadline not in self._waiting:
                raise QueueFull("too many requests are being sent at once") from None
            raise InvalidRequest("the message took too long to arrive") from None
        finally:
            self._waiting.pop(deadline, None)

    def _make_room(self) -> None:
        if len(self._waiting) >= self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.reschedule(0.0)  # long past


def _method(
    name: str, answer: Callable[[bytes], Awaitable[bytes]], arrivals: _Arrivals, metrics: Metrics
) -> grpc.RpcMethodHandler:
    """Bytes to bytes: gRPC's own messages about what it could not decode would not keep to our words.

    To gRPC each is a stream of requests, of which one is read: so the wait for the message can be bounded.
    """

    async def serve(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        started = time.monotonic()
        request_id = secrets.token_hex(8)
        status, words, outcome = StatusCode.CANCELLED, "", "cancelled"
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                answered = await answer(await arrivals.message(messages))
                status, outcome = StatusCode.OK, "ok"
            except Exception as error:
                failure = _as_scoring_error(error)
                (status, words), outcome = status_and_words(failure), failure.full_code
            finally:
                _account(name, status, outcome, time.monotonic() - started, metrics)
        context.set_trailing_metadata((("x-request-id", request_id),))
        if status is not StatusCode.OK:
            await context.abort(status, words)
        return answered

    return grpc.stream_unary_rpc_method_handler(serve)


def _account(name: str, status: StatusCode, outcome: str, seconds: float, metrics: Metrics) -> None:
    metrics.requests.labels("grpc", name, outcome).inc()
    metrics.request_seconds.labels("grpc", name).observe(seconds)
    quiet = status is StatusCode.RESOURCE_EXHAUSTED or (name == "Health" and status is StatusCode.OK)
    log.log(
        logging.DEBUG if quiet else logging.INFO,
        "request",
        method=f"gRPC {name}",
        status=status.name,
        outcome=outcome,
        seconds=round(seconds, 4),
    )


def _as_scoring_error(error: Exception) -> ScoringError:
    if isinstance(error, ScoringError):
        return error
    if (trouble := exhaustion_of(error)) is not None:
        return trouble
    log_bug(error)
    return InternalError("an unexpected error")


def _decoded(decode: Callable[[bytes], T], message: bytes) -> T:
    try:
        return decode(message)
    except BcsError as error:
        raise InvalidRequest(str(error)) from None


def competition_of(request: ScoreRequest, max_models: int) -> Competition:
    """What the request asks. Raises InvalidRequest or InvalidKey."""
    if len(request.model_manifests) > max_models:  # reading thousands of checksums would hold everybody up
        raise InvalidRequest(f"a competition must have 1 to {max_models} models")
    if not is_checksum(request.data_checksum):
        raise InvalidRequest("the data needs a Blake2b-256 digest in Base58")
    return Competition(
        data=BlobRef(request.data_url, request.data_checksum, request.data_size),
        models=competitors(
            (BlobRef(model.url, model.checksum, model.size), model.decryption_key)
            for model in request.model_manifests
        ),
        seed=request.seed,
        target_embedding=request.target_embedding,
    )


def response_of(verdict: CompetitionResult) -> ScoreResponse:
    """The winner's numbers: all that this door has room for."""
    winner = verdict.winning
    if winner.distance is None:
        raise InternalError("a competition with a target gave no distance")
    return ScoreResponse(
        winner=verdict.winner,
        loss_score=(winner.loss,),
        embedding=tuple(winner.embedding.tolist()),
        distance=(winner.distance,),
    )
