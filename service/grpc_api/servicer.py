"""The network's own API: `scoring.Scoring` over gRPC, with messages in BCS."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol, TypeVar

import grpc
import structlog
from grpc import StatusCode

from service import tracing
from service.blob import BlobRef
from service.checksum import is_checksum
from service.errors import Fault, InternalError, InvalidRequest, QueueFull, ScoringError, exhaustion_of
from service.grpc_api.bcs import BcsError, HealthRequest, HealthResponse, ScoreRequest, ScoreResponse
from service.grpc_api.status import status_and_message
from service.log import log_bug
from service.metrics import Metrics
from service.scoring.competition import MAX_MANIFESTS, Competition, competitors
from service.scoring.results import CompetitionResult
from service.shutdown import Shutdown

SERVICE = "scoring.Scoring"
_FAILURES_OF_THE_SERVER = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)
"""What OpenTelemetry's conventions call an error of a server's span; every other status is the client's doing."""
MAX_MESSAGE_BYTES = 1 << 20
MESSAGE_TIMEOUT_SECONDS = 15.0
"""For the message of a request to arrive, from its headers on."""
MAX_MESSAGES_ARRIVING = 128
"""Requests whose message is being received at once, up to MAX_MESSAGE_BYTES each."""
MAX_STREAMS = 128
"""Requests of one connection at once; a client waits with the next until one has ended."""
IDLE_TIMEOUT_SECONDS = 60.0
"""A connection without a request is closed after this time."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class CompetitionScorer(Protocol):
    """What this API needs of the scorer."""

    async def score(self, competition: Competition) -> CompetitionResult:
        """Decide the competition. Raises ScoringError; stops its work when cancelled."""


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
    message_timeout_seconds: float = MESSAGE_TIMEOUT_SECONDS,
    idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
    grace_seconds: float = 5.0,
    shutdown: Shutdown | None = None,
) -> AsyncIterator[int]:
    """The API open for the length of the block, given its port (a free one if 0 is asked for).

    The work of a client that disconnects, or whose deadline passes, is cancelled. A connection above
    `max_connections` is closed at once. At the end no new calls are accepted, and those that still run after
    `grace_seconds`, or when the shutdown becomes urgent, are cancelled. Raises OSError when the address is taken.
    """

    async def score(message: bytes) -> bytes:
        competition = competition_of(_decoded(ScoreRequest.decode, message), max_models)
        return response_of(await scorer.score(competition)).encode()

    async def health(message: bytes) -> bytes:
        _decoded(HealthRequest.decode, message)
        return HealthResponse(ok=is_ready()).encode()

    server = grpc.aio.server(options=_options(max_connections, idle_timeout_seconds))
    arrivals = _Arrivals(message_timeout_seconds, max_messages_arriving)
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


def _options(max_connections: int, idle_timeout_seconds: float) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),  # also after decompression
        ("grpc.so_reuseport", 0),  # else a second service could share the port
        # A client whose machine is gone without closing its connection is detected, and its work cancelled.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients may ping as well
        # Limits on what clients hold without a request: connections, streams, headers.
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", int(idle_timeout_seconds * 1000)),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.absolute_max_metadata_size", 16 << 10),
    )


class _Arrivals:
    """Requests whose message is being received: so many at once, each for a limited time; the oldest is ended first."""

    def __init__(self, timeout_seconds: float, most: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._most = most
        self._waiting: dict[asyncio.Timeout, None] = {}

    async def message(self, messages: AsyncIterator[bytes]) -> bytes:
        """The first message. Raises InvalidRequest when none arrives in time, QueueFull when ended for another."""
        deadline = asyncio.timeout(self._timeout_seconds)
        try:
            async with deadline:
                self._end_oldest()
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

    def _end_oldest(self) -> None:
        if len(self._waiting) >= self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.reschedule(0.0)  # in the past: it times out at once


def _method(
    name: str, respond: Callable[[bytes], Awaitable[bytes]], arrivals: _Arrivals, metrics: Metrics
) -> grpc.RpcMethodHandler:
    """A method of bytes to bytes: gRPC's own messages about what it cannot decode are not those of our table.

    To gRPC it takes a stream of requests, of which one is read, so that there can be a timeout for it.
    """

    async def serve(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        started = time.monotonic()
        request_id = secrets.token_hex(8)
        status, text, outcome = StatusCode.CANCELLED, "", "cancelled"
        fault: Fault | None = None
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            _span_of(name, context, request_id) as span,
        ):
            try:
                response = await respond(await arrivals.message(messages))
                status, outcome = StatusCode.OK, "ok"
            except Exception as error:
                failure = _as_scoring_error(error)
                (status, text), outcome = status_and_message(failure), failure.full_code
                fault = failure.fault
            finally:
                seconds = time.monotonic() - started
                metrics.observe_request("grpc", name, outcome, seconds, fault)
                if name == "Score":
                    metrics.last_hour.note(outcome, fault)
                _log(name, status, outcome, seconds)
                span.set({"rpc.response.status_code": status.name, "soma_eval.outcome": outcome})
                if status in _FAILURES_OF_THE_SERVER:
                    span.fail(outcome)
        context.set_trailing_metadata((("x-request-id", request_id),))
        if status is not StatusCode.OK:
            await context.abort(status, text)
        return response

    return grpc.stream_unary_rpc_method_handler(serve)


def _span_of(
    name: str, context: grpc.aio.ServicerContext[bytes, bytes], request_id: str
) -> AbstractContextManager[tracing.Span]:
    """The span of the whole call, below its client's; the probe has none."""
    if name == "Health":
        return tracing.NO_SPAN
    metadata = context.invocation_metadata() or ()
    headers = {key: value for key, value in metadata if key in tracing.TRACE_HEADERS}
    attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/{name}",
        "soma_eval.request_id": request_id,
    }
    return tracing.server_span(f"{SERVICE}/{name}", headers, attributes)


def _log(name: str, status: StatusCode, outcome: str, seconds: float) -> None:
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
    """The competition that the request describes. Raises InvalidRequest or InvalidKey."""
    if len(request.model_manifests) > max_models:
        # Said before any is decoded: to decode thousands of checksums would delay every other request.
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


def response_of(result: CompetitionResult) -> ScoreResponse:
    """The winner's numbers: all that the network's response has fields for."""
    winner = result.winning
    if winner.distance is None:
        raise InternalError("a competition with a target gave no distance")
    return ScoreResponse(
        winner=result.winner,
        loss_score=(winner.result.loss,),
        embedding=tuple(winner.result.embedding.tolist()),
        distance=(winner.distance,),
    )
