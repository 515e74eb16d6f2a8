"""One call from its first try to its answer: everything of it but reading, writing and sleeping.

The two clients share it. Each runs this loop, with `await` or without:

    for seconds in exchange.tries():
        sleep(seconds)
        with exchange.attempt(), http.stream(**exchange.request) as response:
            exchange.begin(response)
            for chunk in response.iter_bytes():
                yield from exchange.feed(chunk)
            yield from exchange.end()
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from .calls import Call
from .errors import ConnectionFailed, SomaEvalError, TimedOut, UnexpectedResponse
from .event_stream import EventStream
from .responses import Job, Problem, Response, ScreenCounts, ScreenLastLine, ScreenLine
from .retries import Retries, RetryPolicy

MAX_RESPONSE_BYTES = 64 << 20

R = TypeVar("R", bound=Response)
Result = TypeVar("Result", bound=Response)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits."""

    response_seconds: float
    """For the whole answer to one try."""
    connect_seconds: float = 10.0
    silence_seconds: float = 60.0
    """For the next event of a job; then the client connects again, and so learns whether the service is there."""


class _Finished(Exception):
    """Nothing more of this answer is needed."""


class Exchange(Generic[R]):
    """A call whose answer is one value."""

    def __init__(self, call: Call[R], policy: RetryPolicy, timeouts: Timeouts) -> None:
        self._call = call
        self._timeouts = timeouts
        self._retries = Retries(policy, time.monotonic())
        self._next_wait: float | None = 0.0
        self._status = 0
        self._headers = httpx.Headers()
        self._content = bytearray()
        self._deadline = 0.0
        self._was_lost = False
        """Whether a try broke off after the service may have begun the work."""

    @property
    def request(self) -> dict[str, Any]:
        """The arguments of httpx's `stream`."""
        call, wait = self._call, self._read_seconds
        return {
            "method": call.method,
            "url": call.path,
            "content": call.body,
            "headers": dict(call.headers) | self._idempotency,
            "timeout": httpx.Timeout(wait, connect=self._timeouts.connect_seconds),
        }

    @property
    def _idempotency(self) -> dict[str, str]:
        """The key goes with every try after one that may have begun the work, and stays with the call."""
        has_key = self._call.idempotency_key and (self._call.has_key_at_once or self._was_lost)
        return {"Idempotency-Key": self._call.idempotency_key} if has_key else {}

    @property
    def _read_seconds(self) -> float:
        return self._timeouts.response_seconds

    def tries(self) -> Iterator[float]:
        """Before each try the seconds to wait; none follows a try that succeeded."""
        while self._next_wait is not None:
            seconds, self._next_wait = self._next_wait, None
            yield seconds

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One try. A failure within is raised only where no other try is allowed."""
        self._start()
        try:
            yield
        except _Finished:
            pass
        except httpx.HTTPError as error:
            failure = self._connection_failed(error)
            failure.__cause__ = error
            self._next_wait = self._seconds_to_wait(failure)
        except SomaEvalError as error:
            self._next_wait = self._seconds_to_wait(error)

    def _start(self) -> None:
        self._deadline = time.monotonic() + self._timeouts.response_seconds
        self._content.clear()

    def _seconds_to_wait(self, failure: SomaEvalError) -> float:
        if not self._call.is_retried:
            raise failure
        return self._retries.seconds_to_wait(failure, time.monotonic())

    def begin(self, response: httpx.Response) -> None:
        """The head of an answer is here."""
        self._status, self._headers = response.status_code, response.headers

    def feed(self, chunk: bytes) -> Iterable[R]:
        """More of its body; the values that are complete."""
        self._content += chunk
        if len(self._content) > MAX_RESPONSE_BYTES:
            raise UnexpectedResponse(f"the answer is longer than {MAX_RESPONSE_BYTES >> 20} MiB")
        if time.monotonic() > self._deadline:
            raise self._timed_out()
        return ()

    def end(self) -> Iterable[R]:
        """Its body is complete; the values in it. Raises what the service says went wrong."""
        if self._status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise self._problem()
        return (self._parse(bytes(self._content)),)

    def _parse(self, content: bytes) -> R:
        try:
            return self._call.response.model_validate_json(content)
        except ValidationError as error:
            raise UnexpectedResponse(
                f"the answer is not one of soma-eval: {_describe(error, content)}"
            ) from None

    def _problem(self) -> SomaEvalError:
        content = bytes(self._content)
        try:
            problem = Problem.model_validate_json(content)
        except ValidationError as error:
            return UnexpectedResponse(
                f"status {self._status}, and the answer is not one of soma-eval: {_describe(error, content)}"
            )
        return problem.to_exception(_seconds(self._headers.get("Retry-After", "")))

    def _connection_failed(self, error: httpx.HTTPError) -> ConnectionFailed:
        """What went wrong below HTTP. It is retryable where the service cannot have begun to work."""
        match error:
            case httpx.ConnectError() if _is_tls(error):
                return ConnectionFailed("the service does not speak TLS, or its certificate is not valid")
            case httpx.ConnectError():
                return ConnectionFailed("nothing answers at the service's address", retryable=True)
            case httpx.ConnectTimeout() | httpx.PoolTimeout():
                return TimedOut("there was no connection to the service in time", retryable=True)
            case httpx.TimeoutException():
                return self._timed_out()
        self._was_lost = True
        detail = "the connection broke before the whole answer was here, or what answered does not speak HTTP"
        return ConnectionFailed(detail, retryable=self._call.is_repeatable)

    def _timed_out(self) -> TimedOut:
        self._was_lost = True
        seconds = self._timeouts.response_seconds
        return TimedOut(f"there was no whole answer within {seconds:g} s", retryable=self._call.is_repeatable)


class Following(Exchange[Job[Result]], Generic[Result]):
    """A call whose answer is a stream of events: a job as it stands, again and again until it has ended.

    Where the stream breaks off, another is asked for: its first event says how the job stands by then.
    """

    _latest: Job[Result] | None = None

    @property
    def _read_seconds(self) -> float:
        return self._timeouts.silence_seconds

    def _start(self) -> None:
        super()._start()
        self._events = EventStream(MAX_RESPONSE_BYTES)
        self._has_event = False

    def feed(self, chunk: bytes) -> Iterable[Job[Result]]:
        """More of the stream; the job as each event has it."""
        if self._status != HTTPStatus.OK:
            yield from super().feed(chunk)
            return
        for data in self._events.feed(chunk):
            job, earlier = self._parse(data), self._latest
            self._has_event, self._latest = True, job
            if job.has_advanced_from(earlier):
                self._retries.restart(time.monotonic())
            if job != earlier:
                yield job
            if job.is_finished:
                raise _Finished

    def end(self) -> Iterable[Job[Result]]:
        """The stream has ended, and the job has not."""
        if self._status != HTTPStatus.OK:
            raise self._problem()
        raise ConnectionFailed("the stream of events ended before the job did", retryable=True)

    def _seconds_to_wait(self, failure: SomaEvalError) -> float:
        if isinstance(failure, TimedOut) and self._has_event:  # nothing happened for a while: no failed try
            return 0.0
        return super()._seconds_to_wait(failure)

    def _timed_out(self) -> TimedOut:
        return TimedOut(f"there was no event within {self._timeouts.silence_seconds:g} s", retryable=True)


class ScreenExchange(Exchange[ScreenLine]):
    """A call whose answer is a line for each piece, and a last one.

    Where that breaks off, the whole is asked for again: the service keeps what it has computed, and the pieces whose
    lines were here are left out.
    """

    def __init__(self, call: Call[ScreenLine], policy: RetryPolicy, timeouts: Timeouts) -> None:
        super().__init__(call, policy, timeouts)
        self.summary: ScreenCounts | None = None
        self._pieces: set[int | str] = set()
        """Those whose lines were here."""

    def _start(self) -> None:
        super()._start()
        self.summary = None

    def feed(self, chunk: bytes) -> Iterable[ScreenLine]:
        """More of the answer; the pieces whose lines are complete. `response_seconds` are for each of them."""
        if self._status != HTTPStatus.OK:
            yield from super().feed(chunk)
            return
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = self._parse_line(bytes(self._content) + end)
            self._content.clear()
            if isinstance(line, ScreenLastLine):
                self.summary = line.summary
                if line.error is not None:
                    raise line.error.to_exception()
            elif line.piece not in self._pieces:
                self._pieces.add(line.piece)
                self._retries.restart(time.monotonic())
                yield line
        self._content += rest
        if len(self._content) > MAX_RESPONSE_BYTES:
            raise UnexpectedResponse(f"a line is longer than {MAX_RESPONSE_BYTES >> 20} MiB")

    def end(self) -> Iterable[ScreenLine]:
        """The answer has ended. Raises what the service says went wrong, ConnectionFailed where it was cut off."""
        if self._status != HTTPStatus.OK:
            raise self._problem()
        if self.summary is None:
            self._was_lost = True
            raise ConnectionFailed("the answer was cut off before its last line", retryable=True)
        return ()

    def _parse_line(self, line: bytes) -> ScreenLine | ScreenLastLine:
        try:
            return _SCREEN_LINE.validate_json(line)
        except ValidationError as error:
            raise UnexpectedResponse(f"a line is not one of soma-eval: {_describe(error, line)}") from None


_SCREEN_LINE: TypeAdapter[ScreenLine | ScreenLastLine] = TypeAdapter(ScreenLine | ScreenLastLine)


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe(error: ValidationError, content: bytes) -> str:
    """What is wrong, without anything of what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        page = content[:1024].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        return "it is an HTML page" if page else "it is not JSON" if content else "it is empty"
    place = str(first["loc"][0]) if first["loc"] else "the whole"  # deeper names may be the server's own
    return f"{place}: {first['msg']}"


def _seconds(retry_after: str) -> float | None:
    """None for what is not a plain number of seconds."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else None
