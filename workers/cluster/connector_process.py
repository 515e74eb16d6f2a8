"""The connector as the service holds it: messages in, messages out."""

import asyncio
import os
import secrets

from workers.cluster.messages import LOCAL, ClusterConfig, FromConnector, ToConnector
from workers.message_codec import Decoder, MalformedMessage, encode
from workers.processes.child_process import ChildProcess, Pipe
from workers.processes.isolated_python import python_environment

_ENTRY_MODULE = "workers.cluster.connector"
_QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "error", "RAY_COLOR_PREFIX": "0"}
"""Unless the environment says otherwise: nothing is reported to Ray's makers, and only errors are printed."""
_LEAVE_SECONDS = 15.0
"""How long a connector may take to end its actors and leave the cluster."""


class ConnectorProcess:
    """A connector that is a child of this process. Make one with `spawn`."""

    def __init__(self, child: ChildProcess, pipe: "_Messages") -> None:
        self._child = child
        self._pipe = pipe

    @classmethod
    async def spawn(cls, config: ClusterConfig) -> "ConnectorProcess":
        """Start one that joins this cluster. Raises OSError when the machine cannot run another process."""
        pipe = _Messages()
        of_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        if config.address == LOCAL:  # Ray reads them as it is imported
            of_ray |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = python_environment() | _QUIET_RAY | of_ray  # where the cluster's token may be
        connector = cls(await ChildProcess.spawn(_ENTRY_MODULE, pipe, environment, "Ray connector"), pipe)
        connector.send(config)
        return connector

    def send(self, message: ToConnector) -> None:
        """Put a message on its way; nothing happens when the connector is gone."""
        self._child.write(encode(message))

    async def receive(self, timeout_seconds: float) -> FromConnector | None:
        """The next message; None when nothing came for that long. Raises EOFError when the connector has ended."""
        try:
            async with asyncio.timeout(timeout_seconds):
                message = await self._pipe.inbox.get()
        except TimeoutError:
            return None
        if message is None:
            raise EOFError
        return message

    async def leave(self) -> None:
        """Have it end its actors and leave the cluster; returns when it is gone."""
        self._pipe.closed_by_child = True  # so that it is waited for, before it is sent a signal
        await self._child.end(_LEAVE_SECONDS)

    async def kill(self) -> None:
        """End it now. Its actors end once Ray, or they themselves, notice."""
        await self._child.kill()


class _Messages(Pipe):
    """Puts the connector's messages into an inbox, in order, and None after the last."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[FromConnector | None] = asyncio.Queue()
        self._decoder = Decoder(FromConnector)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self.inbox.put_nowait(message)
        except MalformedMessage:
            self.inbox.put_nowait(None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.inbox.put_nowait(None)
