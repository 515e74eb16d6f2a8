"""What a service elsewhere says of a request that it could not answer."""

from collections.abc import Mapping
from typing import Any

from service.cli.remedies import remedy
from service.errors import ScoringError

_MAX_SHOWN = 400


class RemoteError(ScoringError):
    """What the service said; its code and fault are kept."""

    title = "The service could not do it"

    def __init__(self, problem: Mapping[str, Any]) -> None:
        fault, detail, code = (problem.get(name) for name in ("fault", "detail", "code"))
        super().__init__(
            shortened(detail) if isinstance(detail, str) and detail else "the service gave no reason",
            fault=fault if fault in ("client", "data_submitter", "model_owner") else "service",
        )
        self._code = shortened(code) if isinstance(code, str) and code else "internal-error"

    @property
    def full_code(self) -> str:
        return self._code


class RemoteTrouble(RemoteError):
    """The same, where another try may succeed."""

    retryable = True


_REMEDIES_AT_A_SERVICE = {
    "no-worker": "Look at the service's log: its workers cannot start.",
    "worker-crashed": "Try again; the service's log says more.",
    "out-of-memory": "Try again when less runs there, or give the service another --device.",
    "out-of-resources": "Try again; the service's log says what it lacks.",
    "insufficient-storage": "Make room on the service's disk, or give its --data-dir another place.",
    "internal-error": "Look at the service's log, and report what it says.",
    "model-too-large": "Raise the service's --max-model-bytes if it is meant to be so large.",
    "data-too-large": "The network evaluates at most 1 MiB at once: cut the data.",
    "body-too-large": "The network evaluates at most 1 MiB at once: cut the data.",
    "download-timeout": "Try again, or allow slower downloads with the service's --min-download-rate.",
    "url-forbidden": "Files of this machine need a service with --allow-http and --allow-private-addresses.",
}
"""What differs where a service elsewhere had the trouble."""


def remedy_for(error: ScoringError) -> str:
    """What to do about the error of a candidate, wherever it was evaluated."""
    at_a_service = _REMEDIES_AT_A_SERVICE if isinstance(error, RemoteError) else {}
    return at_a_service.get(error.full_code) or remedy(error)


def shortened(text: str) -> str:
    """The words of a server, as long as is read."""
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + " ..."
