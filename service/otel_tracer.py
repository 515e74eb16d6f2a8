"""Spans by OpenTelemetry, sent as OTLP over HTTP. The only module that imports it: see service/tracing.py.

Where they are sent, which are kept and what the service is called is said by the OTEL_* variables, which the SDK reads.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.daemon_thread import run_in_daemon_thread
from service.errors import ScoringError
from service.tracing import Attributes, Span, Tracer

CLOSE_SECONDS = 5.0
"""How long the last spans may take to be sent."""
_UNNAMED = "unknown_service"
"""How the SDK calls a service for which OTEL_SERVICE_NAME is not set."""


class _Span:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def set(self, attributes: Attributes) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name, value)

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


class OtelTracer:
    """Makes spans, and sends them from a thread of its own, in batches; what a collector does not take is dropped."""

    def __init__(self, version: str) -> None:
        resource = Resource.create({SERVICE_VERSION: version})
        if str(resource.attributes[SERVICE_NAME]).startswith(_UNNAMED):
            resource = resource.merge(Resource({SERVICE_NAME: "soma-eval"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("soma-eval", version)
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def span(self, name: str, attributes: Attributes) -> Iterator[Span]:
        """See Tracer."""
        with self._start(name, attributes, SpanKind.INTERNAL, None) as span:
            yield span

    @contextlib.contextmanager
    def server_span(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Iterator[Span]:
        """See Tracer."""
        parent = self._propagator.extract(headers, context=Context())
        with self._start(name, attributes, SpanKind.SERVER, parent) as span:
            yield span

    def record(self, name: str, began: float, ended: float, attributes: Attributes) -> None:
        """See Tracer."""
        offset = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            name, attributes=dict(attributes), start_time=offset + int(began * 1e9)
        )
        span.end(end_time=offset + int(ended * 1e9))

    async def close(self) -> None:
        """See Tracer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await run_in_daemon_thread(self._provider.shutdown)

    @contextlib.contextmanager
    def _start(
        self, name: str, attributes: Attributes, kind: SpanKind, parent: Context | None
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            parent,
            kind,
            dict(attributes),
            record_exception=False,  # its text and its trace may hold a URL or a key
            set_status_on_exception=False,
        ) as otel_span:
            span = _Span(otel_span)
            try:
                yield span
            except BaseException as error:
                span.fail(_type_of(error))
                raise


def _type_of(error: BaseException) -> str:
    if isinstance(error, ScoringError):
        return error.full_code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


_keeps_the_contract: type[Tracer] = OtelTracer
