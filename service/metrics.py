"""What Prometheus reads: counts and times. No label is made of anybody's input."""

from collections.abc import Iterable
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric

from service.errors import Fault, InternalError
from service.last_hour import LastHour, Phase

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "soma_eval_"
"""Of every name."""
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


class RefreshedCollector(Protocol):
    """A collector of prometheus_client, some of whose numbers must be waited for."""

    def collect(self) -> Iterable[Metric]:
        """Every family of metrics, with its numbers of now."""

    async def refresh(self) -> None:
        """Read those, for the next `collect`. Does not raise, and does not take long."""


class Metrics:
    """The service's own registry: two services in one process do not share numbers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._refreshed: list[RefreshedCollector] = []
        self._requests = Counter(
            "soma_eval_requests",
            "Requests by protocol, method and outcome: ok or the error's code. `door` is the old name of `protocol`.",
            ["protocol", "door", "method", "outcome"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "soma_eval_request_seconds",
            "From the request's arrival to its response. `door` is the old name of `protocol`.",
            ["protocol", "door", "method"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._failures = Counter(
            "soma_eval_request_failures",
            "Requests that failed, by whose fault it was and the error's code.",
            ["fault", "code"],
            registry=self._registry,
        )
        # Prometheus sees a rise only in a series that was there before: the alert needs the first one too.
        self._failures.labels("service", InternalError.code)
        self._phase_seconds = Histogram(
            "soma_eval_phase_seconds",
            "Phases of an evaluation: queue, download, load, eval.",
            ["phase"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.result_cache_hits = Counter(
            "soma_eval_result_cache_hits",
            "Evaluations that were answered with a kept result.",
            registry=self._registry,
        )
        self.result_mismatches = Counter(
            "soma_eval_result_mismatches",
            "Results computed anew that differ from the kept ones: the fault of a machine.",
            registry=self._registry,
        )
        self.last_hour = LastHour()
        """For the status page."""

    def observe_request(
        self,
        protocol: Literal["http", "grpc"],
        method: str,
        outcome: str,
        seconds: float,
        fault: Fault | None = None,
    ) -> None:
        """Count one request that has ended; `fault` is that of the error whose code is the outcome."""
        if fault is not None:
            self._failures.labels(fault, outcome).inc()
        self._requests.labels(protocol=protocol, door=protocol, method=method, outcome=outcome).inc()
        self._request_seconds.labels(protocol=protocol, door=protocol, method=method).observe(seconds)

    def observe_phase(self, phase: Phase, seconds: float) -> None:
        """Count one phase of an evaluation that has ended."""
        self._phase_seconds.labels(phase).observe(seconds)
        self.last_hour.note_phase(phase, seconds)

    def register(self, collector: RefreshedCollector) -> None:
        """Add metrics that are read whenever all are rendered."""
        self._registry.register(collector)
        self._refreshed.append(collector)

    async def refresh(self) -> None:
        """Read what must be waited for, before the metrics are rendered."""
        for collector in self._refreshed:
            await collector.refresh()

    def render(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
