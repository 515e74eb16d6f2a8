"""The process that talks to Ray: `python -m workers.cluster.connector FD PARENT_PID`, started by the service.

Ray is kept out of the service: it may end the process that it runs in, as when its head is gone for a minute, it
takes over signals and output, and what nodes return is unpickled where it arrives. When this process ends, the
service starts another, which joins the cluster again.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from workers.cluster.cluster_errors import ActorLost, CannotJoin, NotOurs
from workers.cluster.device_actor import DeviceActor
from workers.cluster.file_sender import FileSender
from workers.cluster.hello import Hello, own_hello, refusal
from workers.cluster.messages import (
    Alive,
    ClusterConfig,
    Connected,
    ConnectionFailed,
    DeviceJoined,
    DeviceLeft,
    DeviceRefused,
    EndProcess,
    FileSent,
    FromConnector,
    ProcessEnded,
    Relay,
    RelayJob,
    Spawn,
    SpawnFailed,
    StopJob,
    ToConnector,
)
from workers.cluster.node_devices import NodeDevice, wanted_devices
from workers.cluster.ray_cluster import RayCluster
from workers.cluster.session import Session
from workers.message_codec import Decoder, MalformedMessage, encode
from workers.own_process import die_with_parent, keep_memory_private

ALIVE_SECONDS = 1.0
_NODES_SECONDS = 1.0
"""Between two looks at which nodes there are."""
_HEAD_SILENT_SECONDS = 15.0
"""Without an answer of Ray's head after which the cluster is lost."""
_PENDING_SECONDS = 60.0
"""How long a device's first actor may take to start before that is reported; it is waited for further."""
_RETRY_SECONDS = 5.0


class Connector:
    """Relays between the service and the cluster until the service closes the pipe."""

    def __init__(self, config: ClusterConfig, writer: asyncio.StreamWriter) -> None:
        self._config = config
        self._writer = writer
        self._cluster = RayCluster(config)
        self._files = FileSender(self._cluster, lambda *sent: self.send(FileSent(*sent)))
        self._devices: dict[str, DeviceActor] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._sessions: dict[int, tuple[str, Session]] = {}
        """Session -> its device and itself."""
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: FromConnector) -> None:
        """Put a message on its way to the service."""
        self._writer.write(encode(message))

    async def follow_nodes(self) -> None:
        """Join the cluster, and follow its nodes as they come and go. Raises CannotJoin when it is lost."""
        await asyncio.to_thread(self._cluster.join)
        is_first = True
        while True:
            try:
                async with asyncio.timeout(_HEAD_SILENT_SECONDS):
                    nodes = await asyncio.to_thread(self._cluster.nodes)
            except Exception as error:  # Ray raises its own errors, RuntimeError and TimeoutError
                raise CannotJoin(f"Ray's head does not answer: {type(error).__name__}") from None
            wanted = {device.id: device for device in wanted_devices(nodes, self._config.devices)}
            if is_first:
                self.send(Connected(len(wanted)))
                is_first = False
            self._follow(wanted, {node.id for node in nodes})
            await asyncio.sleep(_NODES_SECONDS)

    def act_on(self, message: ToConnector) -> None:
        """What the service asks."""
        match message:
            case Spawn(session, device_id):
                if device_id in self._devices:
                    actor = self._devices[device_id]
                    started = Session(message, actor, self._files, self._config.silence_seconds, self.send)
                    self._sessions[session] = device_id, started
                else:
                    self.send(SpawnFailed(session, "its node left the cluster"))
            case EndProcess(session, grace_seconds):
                _, ended = self._sessions.pop(session, ("", None))
                if ended:
                    self._keep(asyncio.create_task(ended.end(grace_seconds)))
                else:
                    self.send(ProcessEnded(session, -signal.SIGKILL, True, False))
            case Relay(session) | RelayJob(session) | StopJob(session):
                if session in self._sessions:
                    self._relay(self._sessions[session][1], message)
            case ClusterConfig():
                pass  # there is one cluster for one connector

    def end_all(self) -> None:
        """End every actor and leave the cluster."""
        for actor in self._devices.values():
            actor.end()
        self._cluster.leave()

    def _relay(self, session: Session, message: Relay | RelayJob | StopJob) -> None:
        match message:
            case Relay(_, frames):
                session.relay(frames)
            case RelayJob():
                session.relay_job(message)
            case StopJob():
                session.stop_job(message)

    def _follow(self, wanted: dict[str, NodeDevice], alive: set[str]) -> None:
        for device_id in self._devices.keys() - wanted.keys():
            node = self._devices[device_id].device.node
            is_there = node.id in alive
            self._leave(
                device_id, f"node {node.name} {'is not wanted now' if is_there else 'left the cluster'}"
            )
        for device_id in wanted.keys() - self._devices.keys():
            self._devices[device_id] = actor = DeviceActor(wanted[device_id], self._cluster)
            self._joining[device_id] = asyncio.create_task(self._join(actor))

    def _leave(self, device_id: str, reason: str) -> None:
        actor = self._devices.pop(device_id)
        self._joining.pop(device_id).cancel()
        for number, (device, session) in list(self._sessions.items()):
            if device == device_id:
                del self._sessions[number]
                session.lose(reason)
        self.send(DeviceLeft(device_id, reason))
        actor.end()

    async def _join(self, actor: DeviceActor) -> None:
        """Get a hello from the device's actor, and report what comes of it."""
        device = actor.device
        while True:
            try:
                hello = await actor.start(_PENDING_SECONDS)
                if reason := refusal(own_hello(Path()), hello):
                    raise NotOurs(reason)
            except NotOurs as error:
                actor.end()
                self.send(DeviceRefused(device.id, device.node.name, device.kind, str(error)))
                return
            except ActorLost as error:
                reason = f"its actor does not start: it {error}"
                self.send(DeviceRefused(device.id, device.node.name, device.kind, reason))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.send(_joined(device, hello))
                return

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _joined(device: NodeDevice, hello: Hello) -> DeviceJoined:
    is_gpu = device.kind == "cuda"
    return DeviceJoined(
        device_id=device.id,
        node=device.node.name,
        device="cuda:0" if is_gpu else "cpu",
        device_on_node=f"cuda:{hello.gpu or device.index}" if is_gpu else "cpu",
        num_on_node=device.num_on_node,
        num_cores=min(hello.num_cores, device.node.num_cpus or hello.num_cores),
        free_memory_bytes=hello.free_memory_bytes,
        build=hello.torch,
        data_dir=hello.data_dir,
    )


async def _run_and_leave(connection: socket.socket) -> NoReturn:
    try:
        await _run(connection)
    except MalformedMessage:  # of the service, which is not of this version
        os._exit(1)
    os._exit(0)  # a thread may still wait for Ray


async def _run(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    decoder = Decoder(ToConnector)
    messages: list[ToConnector] = []
    while not messages:
        messages = decoder.feed(await _read(reader))
    config = messages.pop(0)
    if not isinstance(config, ClusterConfig):
        raise MalformedMessage("the first message says which cluster")
    connector = Connector(config, writer)
    following = asyncio.create_task(_follow(connector, writer))
    beating = asyncio.create_task(_beat(connector))
    try:
        while True:
            for message in messages:
                connector.act_on(message)
            messages = decoder.feed(await _read(reader))
    except EOFError:  # the service is gone, or wants no cluster any more
        following.cancel()
        beating.cancel()
        connector.end_all()


async def _read(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(1 << 20)
    if not data:
        raise EOFError
    return data


async def _follow(connector: Connector, writer: asyncio.StreamWriter) -> None:
    try:
        await connector.follow_nodes()
    except CannotJoin as error:
        connector.send(ConnectionFailed(str(error)))
        with contextlib.suppress(OSError):
            await writer.drain()
        os._exit(1)  # Ray's own end may wait for a head that is gone


async def _beat(connector: Connector) -> NoReturn:
    while True:
        connector.send(Alive())
        await asyncio.sleep(ALIVE_SECONDS)


def main() -> None:
    """The whole life of a connector."""
    die_with_parent(parent_pid=int(sys.argv[2]))
    keep_memory_private()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_run_and_leave(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
