"""What a command that takes long waits for at first."""

import sys
from collections.abc import Sequence

from service.cli.standard_streams import complain
from service.cli.urls import without_secrets
from service.config import Settings


def say_what_is_awaited(settings: Settings, url: str | None, *, has_bar: bool = True) -> None:
    """A line on stderr, unless that is a terminal, where a bar shows it at once."""
    if not has_bar or not sys.stderr.isatty():
        complain(f"{what_is_awaited(settings, url)}.")


def what_is_awaited(settings: Settings, url: str | None) -> str:
    """Workers of its own, or the service at a URL, as a person would say it."""
    if url is not None:
        return f"asking the service at {without_secrets(url)}"
    return f"starting a worker for {device_names(settings.device)}, which tests itself first"


def device_names(devices: Sequence[str]) -> str:
    """The devices of the settings, as a person would say it."""
    return "every GPU, or the CPU if there is none" if "auto" in devices else ", ".join(devices)
