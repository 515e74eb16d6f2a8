"""Both clients against a service that misbehaves."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from soma_eval import Client, RetryPolicy, ScreenModel
from soma_eval.errors import (
    ConnectionFailed,
    Draining,
    JobNotFound,
    ModelUnavailable,
    QueueFull,
    SomaEvalError,
    TimedOut,
    UnexpectedResponse,
    WorkerCrashed,
)
from soma_eval.responses import EvalResponse, Job, ScreenCounts
from tests.misbehaving_server import (
    Behaviour,
    MisbehavingServer,
    Reply,
    Request,
    closing_after,
    replying,
    silent,
)
from tests.soma_eval.answers import answer, event, job_json, running_job
from tests.soma_eval.clients import MakeClient

T = TypeVar("T")

EVAL: dict[str, Any] = {"weights_url": "https://publisher.example/w", "data": b"data"}
GOOD = replying(200, json.dumps(answer()).encode())


def problem(code: str, *, status: int, retryable: bool = True, **headers: object) -> Behaviour:
    body = {"code": code, "detail": "so it is", "fault": "service", "retryable": retryable, "status": status}
    return replying(status, json.dumps(body).encode(), **headers)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One for each request, the last for all that follow."""

    async def behave(request: Request, reply: Reply) -> None:
        await behaviours[min(request.number, len(behaviours) - 1)](request, reply)

    return behave


async def breaking(request: Request, reply: Reply) -> None:
    """Closes the connection without an answer."""
    reply.writer.close()


async def half_an_answer(request: Request, reply: Reply) -> None:
    """Promises more than it sends."""
    await reply.head(200, content_length=10_000)
    await reply.raw(json.dumps(answer()).encode()[:100])
    reply.writer.close()


async def asked(
    make_client: MakeClient, behave: Behaviour, call: Callable[[Client], T], **options: Any
) -> tuple[T | SomaEvalError, MisbehavingServer]:
    """What the call returns or raises, and the server with the requests it had."""
    async with MisbehavingServer(behave, tls=False) as server:

        def run() -> T | SomaEvalError:
            try:
                return call(make_client(f"http://127.0.0.1:{server.port}", **options))
            except SomaEvalError as error:
                return error

        return await asyncio.to_thread(run), server


def evaluate(client: Client) -> EvalResponse:
    return client.eval(**EVAL)


@pytest.mark.parametrize(
    "refusal",
    [
        problem("queue-full", status=429, retry_after=0),
        problem("draining", status=503, retry_after=0),
        problem("no-worker", status=503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        problem("data-unavailable", status=502),
    ],
)
async def test_what_is_retryable_is_tried_again(refusal: Behaviour, make_client: MakeClient) -> None:
    result, server = await asked(make_client, in_turn(refusal, refusal, GOOD), evaluate)
    assert isinstance(result, EvalResponse)
    assert len({request.body for request in server.requests}) == 1
    assert len(server.requests) == 3


async def test_it_is_tried_so_often_and_no_more(make_client: MakeClient) -> None:
    result, server = await asked(make_client, problem("queue-full", status=429, retry_after=0), evaluate)
    assert isinstance(result, QueueFull)
    assert len(server.requests) == 3


async def test_a_wait_that_is_too_long_is_not_begun(make_client: MakeClient) -> None:
    result, server = await asked(make_client, problem("draining", status=503, retry_after=31), evaluate)
    assert isinstance(result, Draining)
    assert (result.retry_after_seconds, len(server.requests)) == (31.0, 1)


@pytest.mark.parametrize(
    ("behave", "expected", "words"),
    [
        (problem("weights-invalid", status=422, retryable=False), SomaEvalError, "so it is"),
        (problem("queue-full", status=429, retryable=False, retry_after=0), QueueFull, "so it is"),
        (closing_after(json.dumps(answer()).encode()[:100]), UnexpectedResponse, "not JSON"),
        (replying(200, b"<!DOCTYPE html><title>canary</title>"), UnexpectedResponse, "an HTML page"),
        (replying(503, b"<html>canary</html>", retry_after=0), UnexpectedResponse, "503.*an HTML page"),
        (replying(502), UnexpectedResponse, "502.*empty"),
        (replying(307, location="http://127.0.0.1:1/canary"), UnexpectedResponse, "307"),
        (replying(200, b'{"canary": 1}'), UnexpectedResponse, "loss: Field required"),
        (replying(200, b'["canary"]'), UnexpectedResponse, "the whole"),
        (replying(200, b'{"loss": NaN}'), UnexpectedResponse, "loss: .* finite"),
        (replying(429, b'{"title": "canary"}', retry_after=0), UnexpectedResponse, "code"),
    ],
)
async def test_what_is_not_retryable_is_asked_once(
    behave: Behaviour, expected: type[SomaEvalError], words: str, make_client: MakeClient
) -> None:
    result, server = await asked(make_client, behave, evaluate)
    assert isinstance(result, expected)
    with pytest.raises(expected, match=words):
        raise result
    assert "canary" not in str(result)
    assert len(server.requests) == 1


async def test_an_answer_without_end_is_not_kept(make_client: MakeClient) -> None:
    async def endless(request: Request, reply: Reply) -> None:
        await reply.head(200, transfer_encoding="chunked")
        while True:
            await reply.chunk(bytes(1 << 20))

    result, _ = await asked(make_client, endless, evaluate)
    assert isinstance(result, UnexpectedResponse)
    assert "longer than 64 MiB" in str(result)


async def dripping(request: Request, reply: Reply) -> None:
    """A byte now and then: each is in time, and the whole never is."""
    await reply.head(200, content_length=10_000)
    await reply.drip(bytes(10_000), bytes_per_second=20)


@pytest.mark.parametrize("behave", [silent, dripping])
async def test_an_answer_has_its_time(behave: Behaviour, make_client: MakeClient) -> None:
    once = RetryPolicy(max_tries=1)
    result, server = await asked(make_client, behave, evaluate, timeout_seconds=0.5, retry=once)
    assert isinstance(result, TimedOut)
    assert len(server.requests) == 1


async def test_nobody_there_is_tried_again(make_client: MakeClient) -> None:
    async with MisbehavingServer(silent, tls=False) as server:
        url = f"http://127.0.0.1:{server.port}"
    client = make_client(url)  # nobody listens there any more
    with pytest.raises(ConnectionFailed, match="nothing answers") as raised:
        await asyncio.to_thread(client.eval, **EVAL)
    assert raised.value.retryable


async def test_a_certificate_that_nobody_knows_is_not_tried_again(make_client: MakeClient) -> None:
    async with MisbehavingServer(GOOD) as server:
        client = make_client(f"https://127.0.0.1:{server.port}")
        with pytest.raises(ConnectionFailed, match="certificate") as raised:
            await asyncio.to_thread(client.eval, **EVAL)
    assert not raised.value.retryable


async def test_a_question_that_only_reads_is_asked_again(make_client: MakeClient) -> None:
    again = in_turn(breaking, half_an_answer, job_reply("running"))
    result, server = await asked(make_client, again, lambda client: client.job("abc"))
    assert isinstance(result, Job)
    assert len(server.requests) == 3


@pytest.mark.parametrize("call", [Client.health, Client.ready])
async def test_how_it_is_now_is_asked_once(call: Callable[[Any], object], make_client: MakeClient) -> None:
    refusal = problem("no-worker", status=503, retry_after=0)
    name = call.__name__
    result, server = await asked(make_client, refusal, lambda client: getattr(client, name)())
    assert isinstance(result, SomaEvalError)
    assert len(server.requests) == 1


# -- jobs ----------------------------------------------------------------------------------------------------


def job_reply(state: str) -> Behaviour:
    return replying(200, job_json(state))


def follow(client: Client) -> list[tuple[str, int | None]]:
    return [(job.state, job.progress.models[0].batches_done) for job in client.follow(running_job())]


def breaking_after_event(*events: bytes) -> Behaviour:
    """A stream that breaks off."""

    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(200, transfer_encoding="chunked")
        for one in events:
            await reply.chunk(one)
        reply.writer.close()

    return behave


async def test_a_stream_that_breaks_off_is_taken_up_again(make_client: MakeClient) -> None:
    """More often than there are tries, for the job advances; what is known already is not told again."""
    streams = [breaking_after_event(event("running", done), event("running", done + 1)) for done in range(5)]
    last = closing_after(event("running", 5) + event("succeeded", 6))
    result, server = await asked(make_client, in_turn(*streams, last), follow)
    assert result == [*(("running", done) for done in range(6)), ("succeeded", 6)]
    assert len(server.requests) == 6
    assert all(request.headers["accept"] == "text/event-stream" for request in server.requests)


async def test_a_stream_that_only_breaks_off_is_given_up(make_client: MakeClient) -> None:
    result, server = await asked(make_client, breaking_after_event(event("running", 1)), follow)
    assert isinstance(result, ConnectionFailed)
    assert len(server.requests) == 3  # progress was made by the first alone


async def test_the_last_event_is_the_end(make_client: MakeClient) -> None:
    async def lingering(request: Request, reply: Reply) -> None:
        await reply.head(200, transfer_encoding="chunked")
        await reply.chunk(event("succeeded"))
        await silent(request, reply)

    result, _ = await asked(make_client, lingering, lambda client: client.result(running_job()))
    assert result == EvalResponse.model_validate_json(json.dumps(answer()))


async def test_a_job_that_is_gone_is_an_error(make_client: MakeClient) -> None:
    gone = in_turn(breaking, problem("job-not-found", status=404, retryable=False))
    result, server = await asked(make_client, gone, follow)
    assert isinstance(result, JobNotFound)
    assert len(server.requests) == 2


async def test_a_draining_service_is_asked_for_events_again(make_client: MakeClient) -> None:
    restarting = in_turn(problem("draining", status=503, retry_after=0), closing_after(event("succeeded", 1)))
    result, _ = await asked(make_client, restarting, follow)
    assert result == [("succeeded", 1)]


@pytest.mark.parametrize(
    "stream", [b"event: progress\ndata: {}\n\n", b"data: nothing\n\n", b"data: " + bytes(65 << 20)]
)
async def test_events_that_are_none_are_refused(stream: bytes, make_client: MakeClient) -> None:
    result, server = await asked(make_client, closing_after(stream), follow)
    assert isinstance(result, UnexpectedResponse)
    assert len(server.requests) == 1


async def test_a_submission_has_one_key_from_its_first_try_on(make_client: MakeClient) -> None:
    accepted = replying(202, job_json("queued"))
    again = in_turn(breaking, half_an_answer, accepted)
    result, server = await asked(make_client, again, lambda client: client.submit_eval(**EVAL))
    assert isinstance(result, Job)
    assert {request.headers["prefer"] for request in server.requests} == {"respond-async"}
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert (len(keys), len(set(keys))) == (3, 1)


async def test_a_call_whose_connection_broke_is_sent_again_with_a_key(make_client: MakeClient) -> None:
    """The first try has none, so that closing its connection stops the work."""
    full = problem("queue-full", status=429, retry_after=0)
    result, server = await asked(
        make_client, in_turn(full, breaking, half_an_answer, GOOD), evaluate, retry=RetryPolicy(4, 30.0, 0.01)
    )
    assert isinstance(result, EvalResponse)
    keys = [request.headers.get("idempotency-key") for request in server.requests]
    assert keys[:2] == [None, None]
    assert keys[2] is not None
    assert keys[2] == keys[3]


async def test_two_calls_have_two_keys(make_client: MakeClient) -> None:
    def twice(client: Client) -> None:
        client.submit_eval(**EVAL)
        client.submit_eval(**EVAL)

    _, server = await asked(make_client, replying(202, job_json("queued")), twice)
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


# -- screens -------------------------------------------------------------------------------------------------

LINE = b'{"piece": 0, "models": [], "targets": [], "error": null}\n'
COUNTS = b'"summary": {"pieces": 1, "failed": 0, "hits": 0, "pieces_with_hits": 0, "seconds": 0.5}'
TROUBLE = b'{"code": "worker-crashed", "detail": "so it is", "fault": "service", "retryable": true}'
LAST_LINE = b"{" + COUNTS + b', "error": null}\n'
LAST_LINE_OF_TROUBLE = b"{" + COUNTS + b', "error": ' + TROUBLE + b"}\n"
OTHER_LINE = LINE.replace(b'"piece": 0', b'"piece": "b"')


def screen(client: Client) -> tuple[list[int | str], ScreenCounts | None]:
    with client.screen(pieces=[b"data"], models=[ScreenModel("https://publisher.example/w")]) as lines:
        return [line.piece for line in lines], lines.summary


async def test_a_screen_is_tried_again_until_its_first_line(make_client: MakeClient) -> None:
    full = problem("queue-full", status=429, retry_after=0)
    result, server = await asked(make_client, in_turn(full, full, closing_after(LINE + LAST_LINE)), screen)
    assert isinstance(result, tuple)
    lines, summary = result
    assert (lines, summary and summary.pieces) == ([0], 1)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "first",
    [
        closing_after(LINE),
        closing_after(LINE + b'{"piece": "b"'),
        closing_after(LINE + LAST_LINE_OF_TROUBLE),
    ],
)
async def test_a_screen_that_is_cut_off_goes_on_and_gives_no_piece_twice(
    first: Behaviour, make_client: MakeClient
) -> None:
    again = closing_after(OTHER_LINE + LINE + LAST_LINE)
    result, server = await asked(make_client, in_turn(first, again), screen)
    assert isinstance(result, tuple)
    lines, summary = result
    assert (lines, summary and summary.pieces) == ([0, "b"], 1)
    assert len(server.requests) == 2
    assert len({request.body for request in server.requests}) == 1


async def test_a_screen_whose_connection_broke_has_one_key_from_then_on(make_client: MakeClient) -> None:
    full = problem("queue-full", status=429, retry_after=0)
    again = in_turn(full, breaking, closing_after(LINE), closing_after(OTHER_LINE + LAST_LINE))
    result, server = await asked(make_client, again, screen)
    assert isinstance(result, tuple)
    keys = [request.headers.get("idempotency-key") for request in server.requests]
    assert keys[:2] == [None, None]
    assert keys[2] is not None
    assert keys[2] == keys[3]


@pytest.mark.parametrize(
    ("behave", "expected", "words", "num_requests"),
    [
        (breaking, ConnectionFailed, "broke", 3),
        (closing_after(b""), ConnectionFailed, "cut off", 3),
        (closing_after(LINE), ConnectionFailed, "cut off", 3),
        (closing_after(LAST_LINE_OF_TROUBLE), WorkerCrashed, "so it is", 3),
        (closing_after(b"<html>canary</html>\n"), UnexpectedResponse, "HTML page", 1),
        (closing_after(b'{"canary": 1}\n'), UnexpectedResponse, "Field required", 1),
        (closing_after(bytes(65 << 20)), UnexpectedResponse, "longer than 64 MiB", 1),
    ],
)
async def test_a_screen_that_does_not_advance_is_given_up(
    behave: Behaviour, expected: type[SomaEvalError], words: str, num_requests: int, make_client: MakeClient
) -> None:
    """What may pass is tried again; an answer that is no screen is not."""
    result, server = await asked(make_client, behave, screen)
    assert isinstance(result, expected)
    assert re.search(words, str(result))
    assert "canary" not in str(result)
    assert len(server.requests) == num_requests


async def test_the_tries_of_a_screen_are_counted_from_its_last_new_line(make_client: MakeClient) -> None:
    lines = [LINE.replace(b"0", b"%d" % number, 1) for number in range(6)]
    cut_off = [closing_after(b"".join(lines[:count])) for count in range(1, 6)]
    result, server = await asked(
        make_client, in_turn(*cut_off, closing_after(b"".join(lines) + LAST_LINE)), screen
    )
    assert isinstance(result, tuple)
    assert (result[0], len(server.requests)) == (list(range(6)), 6)


async def test_a_failed_download_is_tried_again_only_within_the_policy(make_client: MakeClient) -> None:
    once = RetryPolicy(max_tries=1)
    result, server = await asked(make_client, problem("model-unavailable", status=502), evaluate, retry=once)
    assert isinstance(result, ModelUnavailable)
    assert len(server.requests) == 1
