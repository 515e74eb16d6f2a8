"""What `soma-eval status` does: one screen, once or again and again."""

import asyncio
import json as json_format
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.text import Text

from service.cli.exit_codes import ExitCode
from service.cli.printable import printable
from service.cli.service_client import connect
from service.cli.standard_streams import write_out
from service.cli.status.state import ServiceState, read_state
from service.cli.urls import without_secrets
from service.config import Settings

_EVERY_SECONDS = 2.0


def default_url(settings: Settings) -> str:
    """Where the service of this machine listens, by its settings."""
    host = "127.0.0.1" if settings.host == "0.0.0.0" else "[::1]" if settings.host == "::" else settings.host
    return f"http://{host}:{settings.port or 8000}"


def run_status(url: str, api_key: str | None, *, watch: bool, json: bool) -> int:
    """Returns the exit code. Raises BadUsage, CommandFailed."""
    state = asyncio.run(_look(url, api_key, watch=watch, json=json))
    return ExitCode.GOOD if state.is_ready else ExitCode.MACHINE


async def _look(url: str, api_key: str | None, *, watch: bool, json: bool) -> ServiceState:
    shown = without_secrets(url)
    async with connect(url, api_key) as service:
        if not watch:
            state = await read_state(service, shown)
            write_out(_json(state) if json else f"{screen(state, _width())}\n")
            return state
        if json or sys.stdout is None or not sys.stdout.isatty():
            while True:
                state = await read_state(service, shown)
                write_out(_json(state) if json else f"{screen(state, _width())}\n\n")
                await asyncio.sleep(_EVERY_SECONDS)
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                state = await read_state(service, shown)
                live.update(Text(screen(state, live.console.width)), refresh=True)
                await asyncio.sleep(_EVERY_SECONDS)


def screen(state: ServiceState, width: int) -> str:
    """All of it, for people, in lines of at most so many characters where words allow it."""
    return "\n".join(_lines(name, text, width) for name, text in _rows(state))


def _lines(name: str, text: str, width: int) -> str:
    """What does not fit into the line goes on below the text, not below the name."""
    name = f"{name:<9}"
    return textwrap.fill(
        text,
        width,
        initial_indent=name,
        subsequent_indent=" " * len(name),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width() -> int:
    """That of the terminal; elsewhere a line is as long as it is."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else sys.maxsize


def _rows(state: ServiceState) -> Iterator[tuple[str, str]]:
    reason = f": {printable(state.reason)}" if state.reason else ""
    yield "service", f"{state.url} is {state.status}{reason}"
    for device in state.devices:
        yield "device", _device(device)
    if state.queue:
        queue = state.queue
        size = f" of {queue['size']}" if "size" in queue else ""
        waiting = (
            f"{queue.get('evaluations_waiting', 0)} evaluations and {queue.get('weights_waiting', 0)} weights"
        )
        yield "queue", f"{queue.get('admitted', 0)}{size} requests; {waiting} wait"
    if state.cache_bytes is not None:
        yield "cache", decimal(state.cache_bytes)
    if state.version is not None:
        architecture = f"architecture {state.architecture_version}, {state.precision}"
        packages = ", ".join(f"{name} {version}" for name, version in state.versions.items())
        yield "versions", printable(f"{packages or state.version}; {architecture}")
    if state.note:
        yield "note", state.note


def _device(device: dict[str, Any]) -> str:
    state = "ready" if device.get("ready") else "not ready"
    busy = ", busy" if device.get("busy") else ""
    name = f" ({device['device_name']})" if device.get("device_name") else ""
    restarts = f", started again {device['restarts']} times" if device.get("restarts") else ""
    trouble = f": {device['trouble']}" if device.get("trouble") else ""
    return printable(f"{device.get('device')}{name} {state}{busy}{restarts}{trouble}")


def _json(state: ServiceState) -> str:
    return json_format.dumps(state.to_json()) + "\n"
