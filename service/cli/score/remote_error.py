"""What a service elsewhere says of a request that it could not answer."""

from collections.abc import Mapping
from typing import Any

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


def shortened(text: str) -> str:
    """The words of a server, as long as is read."""
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + " ..."
