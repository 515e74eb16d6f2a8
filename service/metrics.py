"""What Prometheus reads: counts and times. No label is made of anybody's input."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


class Metrics:
    """The service's own registry: two services in one process do not share numbers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "soma_eval_requests",
            "Requests by door, method and outcome: ok or the error's code.",
            ["door", "method", "outcome"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "soma_eval_request_seconds",
            "From the request's arrival to its answer.",
            ["door", "method"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.phase_seconds = Histogram(
            "soma_eval_phase_seconds",
            "Components of an evaluation: queue, download, load, eval.",
            ["phase"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that reads its value when it is asked."""
        Gauge(f"soma_eval_{name}", text, registry=self._registry).set_function(read)

    def render(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
