"""How a service is: what its /ready, /info and /metrics say together. What answers there may be anything."""

from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.cli.remote_error import RemoteError, shortened
from service.cli.service_client import ServiceClient

_READY_STATES = ("ready", "draining", "no-worker", "out-of-resources")
_QUEUE = {
    "admitted": "soma_eval_requests_admitted",
    "evaluations_waiting": "soma_eval_evaluations_waiting",
    "weights_waiting": "soma_eval_weights_waiting",
}


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How a service is now."""

    url: str
    status: str
    """ready; draining, no-worker, out-of-resources; or unreachable where no service of ours answers."""
    reason: str = ""
    """Why it is not ready."""
    version: str | None = None
    """None, as all below, where the service does not tell: /info asks for an API key."""
    precision: str | None = None
    architecture_version: str | None = None
    devices: list[dict[str, Any]] = field(default_factory=list)
    queue: dict[str, int] = field(default_factory=dict)
    """Requests admitted, evaluations that wait, weights that wait; and `size`, the most that are admitted."""
    cache_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
    """What else is to be said."""

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be worked on."""
        return self.status == "ready"

    def to_json(self) -> dict[str, Any]:
        """What `status --json` prints."""
        return asdict(self)


async def read_state(service: ServiceClient, url: str) -> ServiceState:
    """Ask a service how it is. Raises BadUsage where the URL is none."""
    try:
        code, ready = await service.get("/ready")
        numbers = _numbers(await service.get_text("/metrics"))
        info_code, info = await service.get("/info")
    except RemoteError as error:
        return ServiceState(url, "unreachable", error.detail)
    known = info if info_code == 200 else {}
    status = ready.get("status") if code == 200 else ready.get("code")
    if status not in _READY_STATES:
        return ServiceState(url, "unreachable", "what answers there is not soma-eval")
    queue = {name: int(numbers[metric]) for name, metric in _QUEUE.items() if metric in numbers}
    limits = known.get("limits")
    if isinstance(limits, dict) and type(limits.get("queue_size")) is int:
        queue["size"] = limits["queue_size"]
    cache = numbers.get("soma_eval_cache_bytes")
    return ServiceState(
        url=url,
        status=status,
        reason="" if status == "ready" else shortened(str(ready.get("detail", ""))),
        version=_text(known, "version"),
        precision=_text(known, "precision"),
        architecture_version=_text(known, "architecture_version"),
        devices=[device for device in _list(ready, "devices") if isinstance(device, dict)],
        queue=queue,
        cache_bytes=None if cache is None else int(cache),
        versions={str(k): shortened(str(v)) for k, v in dict(known.get("versions") or {}).items()},
        note="versions and limits: give its API key by SOMA_EVAL_API_KEY" if info_code == 401 else "",
    )


def _numbers(text: str) -> dict[str, float]:
    """The gauges without labels."""
    try:
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    except ValueError:
        return {}
    return {sample.name: sample.value for sample in samples if not sample.labels}


def _text(found: dict[str, Any], name: str) -> str | None:
    value = found.get(name)
    return shortened(value) if isinstance(value, str) else None


def _list(found: dict[str, Any], name: str) -> list[Any]:
    value = found.get(name)
    return value if isinstance(value, list) else []
