"""Traces: spans around the parts of a request. Without a tracer every call here does nothing, and nothing is imported.

A span covers work of one task, from the head of a with-block to its end; no block that yields a value to its caller is
inside. What goes into a span is chosen by hand: names, sizes, checksums, codes. Never a key, nor of a URL more than
its host.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """One part of a request, while it runs."""

    def set(self, attributes: Attributes) -> None:
        """Say more of it."""

    def fail(self, error_type: str) -> None:
        """It has failed, with an error of this code or class. Errors that leave the with-block are noted by itself."""


class Tracer(Protocol):
    """Makes spans and sends them on; the real one is in `service.otel_tracer`."""

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span below the current one."""

    def server_span(
        self, name: str, headers: Mapping[str, str], attributes: Attributes
    ) -> AbstractContextManager[Span]:
        """A span below that of the client, which the headers name in W3C form, or the first of a trace."""

    def record(self, name: str, began: float, ended: float, attributes: Attributes) -> None:
        """A span of the past below the current one; its times are of `time.monotonic()`."""

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""


class _NoSpan(AbstractContextManager[Span]):
    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, attributes: Attributes) -> None:
        pass

    def fail(self, error_type: str) -> None:
        pass


TRACE_HEADERS = ("traceparent", "tracestate")
"""By which a client names its span (W3C Trace Context)."""

NO_SPAN = _NoSpan()
"""Says nothing to nobody."""
_tracer: Tracer | None = None


@asynccontextmanager
async def tracing(tracer: Tracer) -> AsyncIterator[None]:
    """Within the block this tracer makes the spans of the whole process; it is closed at the end."""
    global _tracer
    _tracer = tracer
    try:
        yield
    finally:
        _tracer = None
        await tracer.close()


def span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """A span below the current one, for the length of the block."""
    return NO_SPAN if _tracer is None else _tracer.span(name, attributes or {})


def server_span(
    name: str, headers: Mapping[str, str], attributes: Attributes | None = None
) -> AbstractContextManager[Span]:
    """The span of a whole request, for the length of the block; `headers`: those of TRACE_HEADERS that it has."""
    return NO_SPAN if _tracer is None else _tracer.server_span(name, headers, attributes or {})


def record(name: str, began: float, ended: float, attributes: Attributes) -> None:
    """A span of the past below the current one; its times are of `time.monotonic()`."""
    if _tracer is not None:
        _tracer.record(name, began, ended, attributes)


def host_of(url: str) -> Attributes:
    """The host of a URL, as an attribute: nothing else of it may be told."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return {"server.address": host} if host else {}
