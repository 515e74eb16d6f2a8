"""The private parts of uvicorn that `protocol` and `server` extend. When this fails, read the new version's code."""

import asyncio
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

SIGNATURES = {
    HttpToolsProtocol.__init__: ("self", "config", "server_state", "app_state", "_loop"),
    HttpToolsProtocol.connection_made: ("self", "transport"),
    HttpToolsProtocol.connection_lost: ("self", "exc"),
    HttpToolsProtocol.data_received: ("self", "data"),
    HttpToolsProtocol.on_message_begin: ("self",),
    HttpToolsProtocol.on_headers_complete: ("self",),
    HttpToolsProtocol.on_body: ("self", "body"),
    HttpToolsProtocol.on_message_complete: ("self",),
    HttpToolsProtocol.on_response_complete: ("self",),
    HttpToolsProtocol.pause_writing: ("self",),
    HttpToolsProtocol.resume_writing: ("self",),
    HttpToolsProtocol.send_400_response: ("self", "msg"),
    uvicorn.Server.capture_signals: ("self",),
    uvicorn.Server.serve: ("self", "sockets"),
}
"""What is overridden or called."""

ATTRIBUTES: dict[type, set[str]] = {
    HttpToolsProtocol: {"connections", "cycle", "flow", "loop", "server_state", "transport"},
    RequestResponseCycle: {"disconnected", "message_event", "response_complete", "response_started"},
    FlowControl: {"write_paused"},
    ServerState: {"connections"},
    uvicorn.Server: {"server_state", "should_exit", "started"},
}
"""What is read or set."""

OUR_OWN = {"_limits", "_allowance", "_timeout", "_in_body", "_waiting", "_has_responded", "_wait_for_client"}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_method_has_the_parameters_that_we_know(function: Any) -> None:
    assert tuple(inspect.signature(function).parameters) == SIGNATURES[function]


@pytest.mark.parametrize("cls", ATTRIBUTES, ids=lambda cls: cls.__name__)
def test_a_class_sets_the_attributes_that_we_know(cls: type) -> None:
    assert ATTRIBUTES[cls] <= set_in_constructor(cls)


def test_no_private_name_of_ours_is_used_by_the_library() -> None:
    assert not OUR_OWN & (set_in_constructor(HttpToolsProtocol) | set(dir(HttpToolsProtocol)))


def set_in_constructor(cls: type) -> set[str]:
    return set(re.findall(r"self\.(\w+)(?::[^=\n]+)? = ", inspect.getsource(cls.__init__)))  # type: ignore[misc]


async def test_callbacks_are_called_in_the_order_that_we_know() -> None:
    calls: list[str] = []
    ended = asyncio.Event()

    class Recorded(HttpToolsProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    def record(name: str) -> None:
        method = getattr(Recorded, name)

        def recorded(self: Recorded, *arguments: Any) -> None:
            calls.append(name)
            method(self, *arguments)

        setattr(Recorded, name, recorded)

    for name in CALLBACKS:
        record(name)
    config = uvicorn.Config(respond, log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Recorded(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nA")
        assert (await reader.read()).startswith(b"HTTP/1.1 204")
        writer.close()
        await asyncio.wait_for(ended.wait(), 60)
    assert calls == CALLBACKS


CALLBACKS = [
    *("connection_made", "data_received", "on_message_begin", "on_headers_complete", "on_body"),
    *("on_message_complete", "on_response_complete", "connection_lost"),
]


async def respond(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_the_installed_version_is_in_the_range_that_was_tested() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    (uvicorn_range,) = (
        requirement
        for requirement in map(Requirement, pyproject["project"]["dependencies"])
        if requirement.name == "uvicorn"
    )
    assert uvicorn_range.specifier.contains(version("uvicorn"))
    assert {"<", "=="} & {clause.operator for clause in uvicorn_range.specifier}
