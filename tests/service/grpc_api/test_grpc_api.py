"""The gRPC API: status and message of every error, the real client, and clients that disconnect."""

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc import StatusCode
from prometheus_client.parser import text_string_to_metric_families
from soma_sdk import SomaClient
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from benchmarks.fuzz_bcs import STRATEGIES, seeds
from service import errors
from service.blob import BlobRef
from service.errors import BlobKind, ScoringError
from service.grpc_api import servicer
from service.grpc_api.bcs import ManifestInput, ScoreRequest, ScoreResponse
from service.grpc_api.servicer import serve_grpc
from service.grpc_api.status import HASH_MISMATCH, NOT_AVAILABLE, REPLIES, status_and_message
from service.metrics import Metrics
from service.scoring.competition import MAX_MANIFESTS, Competition, ModelManifest
from service.scoring.results import CompetitionResult, Evaluation, ModelOutcome, Provenance, Timings
from tests.http2_client import Http2Client, data, headers
from tests.in_process_pool import eval_result

DIGEST = SomaClient.commitment(b"some bytes")
KEY = bytes(range(32))
KEY_BASE58 = SomaClient.encrypt_weights(b"", KEY)[1]
REQUEST = ScoreRequest(
    data_url="https://data.example/d",
    data_checksum=DIGEST,
    data_size=4,
    model_manifests=(
        ManifestInput("https://models.example/plain", DIGEST, 10),
        ManifestInput("https://models.example/encrypted", DIGEST, 20, KEY_BASE58),
    ),
    target_embedding=(0.5, -1.0),
    seed=2**64 - 1,
)
COMPETITION = Competition(
    data=BlobRef("https://data.example/d", DIGEST, 4),
    models=(
        ModelManifest(BlobRef("https://models.example/plain", DIGEST, 10)),
        ModelManifest(BlobRef("https://models.example/encrypted", DIGEST, 20), KEY),
    ),
    seed=2**64 - 1,
    target_embedding=(0.5, -1.0),
)


def evaluation(loss: float, distance: float | None = 0.25) -> Evaluation:
    return Evaluation(
        result=replace(eval_result(loss), embedding=np.array([0.1, -0.2, 3.0], dtype=np.float32)),
        distance=distance,
        provenance=Provenance(DIGEST, DIGEST, 0, "1", "1", datetime.now(UTC)),
        timings=Timings(0.0, 0.0, 0.0, 0.0, 0.0, "no", result_cached=False),
    )


SECOND_WINS = CompetitionResult(
    winner=1,
    outcomes=(
        ModelOutcome(error=errors.WeightsInvalid("no header", model_index=0)),
        ModelOutcome(evaluation(4.5)),
    ),
    margin=None,
    near_tie=False,
)


class FakeScorer:
    """Gives the answer that is set, after the seconds that are set."""

    def __init__(self) -> None:
        self.asked: list[Competition] = []
        self.answer: CompetitionResult | BaseException = SECOND_WINS
        self.seconds = 0.0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def score(self, competition: Competition) -> CompetitionResult:
        self.asked.append(competition)
        self.started.set()
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Api:
    """A running API, and ways to call it."""

    def __init__(
        self, port: int, scorer: FakeScorer, metrics: Metrics, options: Sequence[tuple[str, int]] = ()
    ) -> None:
        self.port, self.scorer, self.metrics = port, scorer, metrics
        self.ready = True
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0), *options]
        )

    def call(self, method: str, message: bytes, **how: Any) -> Any:
        return self.channel.unary_unary(f"/scoring.Scoring/{method}")(message, **how)

    async def outcome(self, method: str, message: bytes, **how: Any) -> tuple[StatusCode, str]:
        """The status of a call, and the words with it."""
        try:
            await self.call(method, message, **how)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return StatusCode.OK, ""

    async def client(self) -> Any:
        return await SomaClient("http://127.0.0.1:9", scoring_url=f"http://127.0.0.1:{self.port}")

    def count(self, method: str, outcome: str) -> float:
        labels = {"protocol": "grpc", "door": "grpc", "method": method, "outcome": outcome}
        for family in text_string_to_metric_families(self.metrics.render().decode()):
            for sample in family.samples:
                if sample.name == "soma_eval_requests_total" and sample.labels == labels:
                    return sample.value
        return 0.0


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    scorer, metrics = FakeScorer(), Metrics()
    apis: list[Api] = []
    async with serve_grpc(
        scorer, host="127.0.0.1", port=0, is_ready=lambda: apis[0].ready, metrics=metrics
    ) as port:
        apis.append(Api(port, scorer, metrics))
        async with apis[0].channel:
            yield apis[0]


# The status and message of an error


def classes(root: type[ScoringError] = ScoringError) -> Iterator[type[ScoringError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from classes(child)


RAISED = [cls for cls in classes() if "code" in vars(cls)]
"""Every class with a code of its own."""

ADVERSARIAL = [
    "data not available",
    "Data Not Available: unavailable, DATA HASH MISMATCH, Checksum",
    "cannot reach https://user:secret@models.example/w?sig=1 (10.0.0.7)",
    "models.example/weights",
    "Checksum must be 32 bytes",
    KEY_BASE58,
    "",
    "\x00\n\r\ud83d\ude00" * 100,
]


def failures(cls: type[ScoringError], detail: str) -> Iterator[tuple[ScoringError, BlobKind | None]]:
    """The error as it can be raised: of the data, of a model, of neither."""
    if issubclass(cls, errors.BlobError):
        yield cls(detail, blob="data"), "data"
        yield cls(detail, blob="model", model_index=3), "model"
    elif issubclass(cls, errors.ServiceTrouble):
        yield cls(detail, model_index=3), None
    else:
        yield cls(detail, blob="data"), "data"
        yield cls(detail, blob="model", model_index=3), "model"
        yield cls(detail, blob=None), None


WORDS_OF_DATA = {
    errors.InvalidUrl: NOT_AVAILABLE,
    errors.ForbiddenUrl: NOT_AVAILABLE,
    errors.BlobUnavailable: NOT_AVAILABLE,
    errors.DownloadTimeout: NOT_AVAILABLE,
    errors.ChecksumMismatch: HASH_MISMATCH,
}


def assert_innocent(words: str) -> None:
    for fraud in ("not available", "unavailable", "hash mismatch", "checksum"):
        assert fraud not in words.lower()
    assert_no_url(words)


def assert_innocent_to_the_network(words: str) -> None:
    """As validators read it; the words are gRPC's own."""
    for fraud in ("not available", "unavailable", "hash mismatch", "Checksum"):
        assert fraud not in words


def assert_no_url(words: str) -> None:
    for trace in ("://", "example", "10.0.0.7", "secret", "/", "@", "?", KEY_BASE58):
        assert trace not in words


def test_every_error_has_its_row() -> None:
    assert set(REPLIES) == set(RAISED)


@pytest.mark.parametrize("detail", ADVERSARIAL)
@pytest.mark.parametrize("cls", RAISED)
def test_only_errors_of_the_data_have_the_words_of_fraud(cls: type[ScoringError], detail: str) -> None:
    for error, blob in failures(cls, detail):
        _, words = status_and_message(error)
        if blob == "data" and cls in WORDS_OF_DATA:
            assert words == WORDS_OF_DATA[cls]
        else:
            assert_innocent(words)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (errors.InvalidRequest("x/y"), "INVALID_ARGUMENT", "the request is not valid"),
        (errors.InvalidKey("x"), "INVALID_ARGUMENT", "a decryption key is not 32 bytes in Base58"),
        (errors.QueueFull("x"), "RESOURCE_EXHAUSTED", "the queue is full"),
        (errors.Draining("x"), "UNAVAILABLE", "the service is stopping"),
        (errors.DeadlineExceeded("x"), "DEADLINE_EXCEEDED", "the request took too long"),
        (errors.NoWorker("x"), "INTERNAL", "no worker is ready"),
        (errors.BlobUnavailable("x", blob="data"), "INTERNAL", "data not available"),
        (errors.DownloadTimeout("x", blob="data"), "INTERNAL", "data not available"),
        (errors.ForbiddenUrl("x", blob="data"), "INTERNAL", "data not available"),
        (errors.InvalidUrl("x", blob="data"), "INVALID_ARGUMENT", "data not available"),
        (errors.ChecksumMismatch("x", blob="data"), "INTERNAL", "data hash mismatch"),
        (errors.SizeMismatch("x", blob="data"), "INTERNAL", "the data does not have the promised size"),
        (errors.BlobTooLarge("x", blob="data"), "INTERNAL", "the data is larger than this service takes"),
        (errors.EmptyData("x", blob="data"), "INTERNAL", "the data is empty"),
        (
            errors.BlobUnavailable("x", blob="model", model_index=2),
            "INTERNAL",
            "the weights could not be fetched (model 2)",
        ),
        (
            errors.ChecksumMismatch("x", blob="model", model_index=0),
            "INTERNAL",
            "the weights are not the bytes that were promised (model 0)",
        ),
        (errors.InternalError("x"), "INTERNAL", "the service has failed"),
    ],
)
def test_status_and_message(error: ScoringError, status: str, words: str) -> None:
    assert status_and_message(error) == (StatusCode[status], words)


def test_the_network_finds_the_words_of_fraud_in_two_messages_alone() -> None:
    sentences = {answer.message_for_data for answer in REPLIES.values()} - {None}
    telling = {s for s in sentences if s and ("not available" in s or "hash mismatch" in s)}
    assert telling == {"data not available", "data hash mismatch"}


def test_a_harmless_detail_of_a_bad_request_is_quoted() -> None:
    detail = "the target embedding must have 2048 numbers, not 3"
    assert status_and_message(errors.InvalidRequest(detail))[1] == f"the request is not valid: {detail}"


def test_an_error_without_a_row_has_that_of_its_parent() -> None:
    class Fuller(errors.QueueFull):
        """Raised nowhere."""

    assert status_and_message(Fuller("x"))[0] is StatusCode.RESOURCE_EXHAUSTED
    assert status_and_message(ScoringError("unavailable")) == (StatusCode.INTERNAL, "the service has failed")


# Over the wire


async def test_a_competition_is_asked_and_answered(api: Api) -> None:
    response = ScoreResponse.decode(await api.call("Score", REQUEST.encode()))
    assert api.scorer.asked == [COMPETITION]
    assert response.winner == 1
    assert (response.loss_score, response.distance) == ((4.5,), (0.25,))
    assert response.embedding == tuple(evaluation(4.5).result.embedding.tolist())
    assert api.count("Score", "ok") == 1


async def test_health_says_whether_work_would_be_done(api: Api) -> None:
    assert await api.call("Health", b"") == b"\1"
    api.ready = False
    assert await api.call("Health", b"") == b"\0"


@pytest.mark.parametrize(
    ("method", "message"), [("Score", b""), ("Score", b"\xff" * 50), ("Score", bytes(21)), ("Health", b"\0")]
)
async def test_what_is_no_message_is_an_invalid_argument(api: Api, method: str, message: bytes) -> None:
    status, words = await api.outcome(method, message)
    assert status is StatusCode.INVALID_ARGUMENT
    assert words.startswith("the request is not valid")
    assert_innocent(words)
    assert api.count(method, "invalid-request") == 1


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, data_checksum="Checksum unavailable"),
        replace(REQUEST, data_checksum=""),
        replace(REQUEST, model_manifests=(ManifestInput("u", "0OIl", 1),)),
        replace(REQUEST, model_manifests=(ManifestInput("u", DIGEST, 1, "no key"),)),
        replace(REQUEST, model_manifests=(ManifestInput("u", DIGEST, 1, ""),)),
        replace(REQUEST, model_manifests=(ManifestInput("u", DIGEST, 1, "1" * 500_000),)),
        replace(REQUEST, model_manifests=(ManifestInput("u", DIGEST, 1),) * (MAX_MANIFESTS + 1)),
    ],
    ids=["checksum", "empty checksum", "model's checksum", "key", "empty key", "endless key", "models"],
)
async def test_a_request_that_makes_no_sense_is_an_invalid_argument(api: Api, request_: ScoreRequest) -> None:
    status, words = await api.outcome("Score", request_.encode())
    assert status is StatusCode.INVALID_ARGUMENT
    assert_innocent(words)
    assert api.scorer.asked == []


async def test_more_models_than_the_service_takes_are_not_looked_at() -> None:
    async with served(max_models=2) as api:
        request = replace(REQUEST, model_manifests=(ManifestInput("u", "0OIl", 1),) * 3)
        assert await api.outcome("Score", request.encode()) == (
            StatusCode.INVALID_ARGUMENT,
            "the request is not valid: a competition must have 1 to 2 models",
        )


async def test_every_error_arrives_as_the_table_has_it(api: Api) -> None:
    for cls in RAISED:
        for error, _ in failures(cls, "x"):
            api.scorer.answer = error
            assert await api.outcome("Score", REQUEST.encode()) == status_and_message(error)


async def test_an_unknown_exception_is_logged_without_its_text(api: Api) -> None:
    api.scorer.answer = RuntimeError(f"data not available: https://u:p@host/?k={KEY_BASE58}")
    with capture_logs() as logs:
        answer = await api.outcome("Score", REQUEST.encode())
    assert answer == (StatusCode.INTERNAL, "the service has failed")
    assert [entry["exception"] for entry in logs if "exception" in entry] == ["RuntimeError"]
    assert KEY_BASE58 not in repr(logs)
    assert "host" not in repr(logs)


async def test_a_loss_that_no_f32_holds_is_our_failure(api: Api) -> None:
    api.scorer.answer = replace(SECOND_WINS, winner=0, outcomes=(ModelOutcome(evaluation(1e300)),))
    assert (await api.outcome("Score", REQUEST.encode()))[0] is StatusCode.INTERNAL


async def test_a_result_without_a_distance_is_our_failure(api: Api) -> None:
    api.scorer.answer = replace(SECOND_WINS, winner=0, outcomes=(ModelOutcome(evaluation(1.0, None)),))
    assert (await api.outcome("Score", REQUEST.encode()))[0] is StatusCode.INTERNAL


async def test_an_unknown_method_is_unimplemented(api: Api) -> None:
    status, words = await api.outcome("Evaluate", b"")
    assert status is StatusCode.UNIMPLEMENTED
    assert_innocent(words)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_over_the_limit_is_refused(api: Api, compression: grpc.Compression) -> None:
    too_large = bytes(servicer.MAX_MESSAGE_BYTES + 1)
    status, words = await api.outcome("Score", too_large, compression=compression)
    assert status is StatusCode.RESOURCE_EXHAUSTED
    assert_innocent(words)
    assert api.scorer.asked == []


async def test_a_client_that_cancels_ends_its_work(api: Api) -> None:
    api.scorer.seconds = 60.0
    call = api.call("Score", REQUEST.encode())
    await asyncio.wait_for(api.scorer.started.wait(), 60)
    call.cancel()
    await asyncio.wait_for(api.scorer.cancelled.wait(), 60)
    assert api.count("Score", "cancelled") == 1


async def test_a_client_whose_connection_is_lost_ends_its_work(api: Api) -> None:
    api.scorer.seconds = 60.0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}") as channel:
        call = channel.unary_unary("/scoring.Scoring/Score")(REQUEST.encode())
        await asyncio.wait_for(api.scorer.started.wait(), 60)
        await channel.close()
        await asyncio.wait_for(api.scorer.cancelled.wait(), 60)
    assert call.cancelled()


async def test_a_deadline_that_passes_ends_the_work(api: Api) -> None:
    api.scorer.seconds = 60.0
    status, words = await api.outcome("Score", REQUEST.encode(), timeout=2.0)
    assert status is StatusCode.DEADLINE_EXCEEDED
    assert_innocent(words)
    await asyncio.wait_for(api.scorer.cancelled.wait(), 60)


@pytest.mark.parametrize(
    ("work_seconds", "grace_seconds", "status"), [(0.3, 60.0, "OK"), (600.0, 0.3, "UNAVAILABLE")]
)
async def test_stopping_waits_for_the_grace_and_no_longer(
    work_seconds: float, grace_seconds: float, status: str
) -> None:
    scorer = FakeScorer()
    scorer.seconds = work_seconds
    async with serve_grpc(
        scorer, host="127.0.0.1", port=0, is_ready=bool, metrics=Metrics(), grace_seconds=grace_seconds
    ) as port:
        api = Api(port, scorer, Metrics())
        call = asyncio.create_task(api.outcome("Score", REQUEST.encode()))
        await asyncio.wait_for(scorer.started.wait(), 60)
    code, words = await call
    await api.channel.close()
    assert code is StatusCode[status]
    assert scorer.cancelled.is_set() == (status != "OK")
    assert_innocent(words)


# What a caller may hold without asking for anything


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[Api]:
    scorer, metrics = FakeScorer(), Metrics()
    async with serve_grpc(
        scorer, host="127.0.0.1", port=0, is_ready=lambda: True, metrics=metrics, **limits
    ) as port:
        api = Api(port, scorer, metrics)
        async with api.channel:
            yield api


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_message_that_does_not_come_is_not_waited_for() -> None:
    async with served(message_timeout_seconds=2.0) as api:
        with closing(Http2Client(api.port)) as client:
            client.send(headers(1) + headers(3) + data(3, b"\0\0\0\1\0half of it"))
            await wait_until(lambda: api.count("Score", "invalid-request") == 2)
            assert await api.outcome("Score", REQUEST.encode()) == (StatusCode.OK, "")


async def test_a_call_that_ends_without_a_message_is_answered(api: Api) -> None:
    with closing(Http2Client(api.port)) as client:
        client.send(headers(1, end=True))
        await wait_until(lambda: api.count("Score", "invalid-request") == 1)
    assert api.scorer.asked == []


async def test_clients_that_send_no_message_give_way_to_those_that_do() -> None:
    async with served(max_messages_arriving=4) as api:
        with closing(Http2Client(api.port)) as client:
            client.send(b"".join(headers(stream) for stream in range(1, 61, 2)))
            await wait_until(lambda: api.count("Score", "queue-full") == 26)
            assert await api.outcome("Score", REQUEST.encode()) == (StatusCode.OK, "")


async def test_connections_have_a_limit_and_those_that_are_there_go_on() -> None:
    async with served(max_connections=4) as api, AsyncExitStack() as stack:
        assert await api.outcome("Score", REQUEST.encode()) == (StatusCode.OK, "")
        clients = [Http2Client(api.port) for _ in range(20)]
        for client in clients:
            stack.callback(client.close)
        process = psutil.Process()

        def num_accepted() -> int:
            ours = (each for each in process.net_connections("tcp") if each.laddr.port == api.port)
            return sum(each.status == psutil.CONN_ESTABLISHED for each in ours)

        await wait_until(lambda: num_accepted() == 4)
        assert await api.outcome("Score", REQUEST.encode()) == (StatusCode.OK, "")
        status, words = await refused_connection(api.port)
        assert status is StatusCode.UNAVAILABLE
        assert_innocent_to_the_network(words)


async def refused_connection(port: int) -> tuple[StatusCode, str]:
    scorer, metrics = FakeScorer(), Metrics()
    api = Api(port, scorer, metrics, [("grpc.use_local_subchannel_pool", 1)])
    async with api.channel:
        return await api.outcome("Score", REQUEST.encode(), timeout=20)


async def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    async with served(idle_timeout_seconds=1.0) as api:
        api.scorer.seconds = 4.0
        with closing(Http2Client(api.port)) as client:
            call = asyncio.create_task(api.outcome("Score", REQUEST.encode()))
            await asyncio.to_thread(client.wait_until_closed, 20)
        assert await call == (StatusCode.OK, "")


async def test_more_streams_than_a_connection_may_have_are_refused(api: Api) -> None:
    with closing(Http2Client(api.port)) as client:
        client.send(b"".join(headers(2 * i + 1) for i in range(4 * servicer.MAX_STREAMS)))
        refused = await asyncio.to_thread(client.receive_resets, 3 * servicer.MAX_STREAMS)
        assert len(set(refused)) == 3 * servicer.MAX_STREAMS
        assert await api.outcome("Score", REQUEST.encode()) == (StatusCode.OK, "")


async def test_too_much_metadata_is_refused_in_innocent_words(api: Api) -> None:
    metadata = (("x-padding", "checksum unavailable " * 2000),)
    status, words = await api.outcome("Score", REQUEST.encode(), metadata=metadata)
    assert status is StatusCode.RESOURCE_EXHAUSTED
    assert_innocent_to_the_network(words)
    assert api.scorer.asked == []


async def test_each_request_is_one_line_of_log_with_the_id_that_its_caller_has(api: Api) -> None:
    with capture_logs(processors=[merge_contextvars]) as logs:
        call = api.call("Score", REQUEST.encode())
        await call
        await api.outcome("Score", b"no message")
        await api.call("Health", b"")
    answered, refused, health = logs
    seconds = answered.pop("seconds")
    assert 0 <= seconds < 60
    assert answered == {
        "event": "request",
        "log_level": "info",
        "method": "gRPC Score",
        "status": "OK",
        "outcome": "ok",
        "request_id": dict(await call.trailing_metadata())["x-request-id"],
    }
    assert (refused["status"], refused["outcome"]) == ("INVALID_ARGUMENT", "invalid-request")
    assert (health["method"], health["log_level"]) == ("gRPC Health", "debug")


async def test_a_lack_of_this_machine_has_its_own_message(api: Api) -> None:
    for error in (
        OSError(errno.EMFILE, "data not available"),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ):
        api.scorer.answer = error
        answer = await api.outcome("Score", REQUEST.encode())
        assert answer == (StatusCode.INTERNAL, "this machine is out of resources")


async def test_a_taken_port_is_an_os_error(api: Api) -> None:
    with pytest.raises(OSError, match=f"gRPC cannot listen on 127.0.0.1 port {api.port}"):
        async with serve_grpc(
            FakeScorer(), host="127.0.0.1", port=api.port, is_ready=lambda: True, metrics=Metrics()
        ):
            pass


@pytest.mark.slow
async def test_thousands_of_hostile_messages_leave_the_api_working(api: Api) -> None:
    rng, pool = random.Random(3), [*seeds(), REQUEST.encode()]

    async def send(number: int) -> StatusCode:
        message = STRATEGIES[number % len(STRATEGIES)](rng, pool)
        status, words = await api.outcome(("Score", "Health")[number % 8 == 0], message)
        assert_innocent(words)
        return status

    seen: set[StatusCode] = set()
    for start in range(0, 3000, 100):
        seen.update(await asyncio.gather(*(send(start + i) for i in range(100))))
    assert seen == {StatusCode.OK, StatusCode.INVALID_ARGUMENT}
    assert ScoreResponse.decode(await api.call("Score", REQUEST.encode())).winner == 1


# The network's own client


async def ask(client: Any, **changed: Any) -> Any:
    models = [
        SomaClient.model_manifest("https://models.example/plain", checksum=DIGEST, size=10),
        SomaClient.model_manifest(
            "https://models.example/encrypted", checksum=DIGEST, size=20, decryption_key=KEY_BASE58
        ),
    ]
    fields: dict[str, Any] = {
        "data_url": "https://data.example/d",
        "models": models,
        "target_embedding": [0.5, -1.0],
        "data_checksum": DIGEST,
        "data_size": 4,
        "seed": 2**64 - 1,
    }
    return await client.score(**(fields | changed))


async def test_the_real_client_is_answered(api: Api) -> None:
    result = await ask(await api.client())
    assert api.scorer.asked == [COMPETITION]
    assert (result.winner, result.loss_score, result.distance) == (1, [4.5], [0.25])
    assert result.embedding == pytest.approx([0.1, -0.2, 3.0])


async def test_the_real_client_names_inline_data_by_its_digest(api: Api) -> None:
    await ask(await api.client(), data=b"some bytes", data_checksum=None, data_size=None)
    assert api.scorer.asked[0].data == BlobRef("https://data.example/d", DIGEST, len(b"some bytes"))


async def test_the_real_client_reads_health(api: Api) -> None:
    client = await api.client()
    assert await client.scoring_health() is True
    api.ready = False
    assert await client.scoring_health() is False


@pytest.mark.parametrize(
    "error",
    [
        errors.BlobUnavailable("x", blob="data"),
        errors.ChecksumMismatch("x", blob="data"),
        errors.BlobUnavailable("x", blob="model", model_index=1),
        errors.QueueFull("x"),
        errors.DeadlineExceeded("x"),
    ],
)
async def test_the_real_client_raises_our_words(api: Api, error: ScoringError) -> None:
    api.scorer.answer = error
    with pytest.raises(RuntimeError, match="gRPC error") as caught:
        await ask(await api.client())
    assert f'message: "{status_and_message(error)[1]}"' in str(caught.value)


async def test_the_real_client_may_ask_many_things_at_once(api: Api) -> None:
    clients = [await api.client() for _ in range(4)]
    results = await asyncio.gather(*(ask(clients[i % 4], seed=i) for i in range(60)))
    assert {result.winner for result in results} == {1}
    assert sorted(c.seed for c in api.scorer.asked) == list(range(60))
