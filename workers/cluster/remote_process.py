"""A worker process on a node, as its supervisor holds it: the second implementation of `ProcessHandle`."""

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import base58

from workers.cluster.connector_process import ConnectorProcess
from workers.cluster.messages import (
    EndProcess,
    FileMoved,
    FileToSend,
    Frames,
    FromConnector,
    JobUndelivered,
    ProcessEnded,
    ProcessStopped,
    Relay,
    RelayJob,
    SessionClosed,
    Spawn,
    Spawned,
    SpawnFailed,
    StopJob,
)
from workers.errors import StorageFull, WorkerCrashed
from workers.message_codec import Decoder, MalformedMessage, encode
from workers.messages import Evaluate, FromWorker, Heartbeat, Prefetch, Stop, ToWorker
from workers.processes.process_handle import PipeClosed, Undelivered
from workers.types import EvalJob, WorkerConfig

SPAWN_SECONDS = 90.0
"""How long a process may take to be started, its actor's own start included."""
_END_SECONDS = 30.0
_KILLED = -9


class RemoteProcess:
    """One session: a worker process on a node, from its spawn to its end."""

    def __init__(self, session: int, data_dir: str, connector: ConnectorProcess) -> None:
        self.session = session
        self.pid = 0
        self.was_ended_here = False
        self.is_stopped = False
        self.is_stuck = False
        self._data_dir = data_dir
        self._connector = connector
        self._inbox: asyncio.Queue[FromWorker | PipeClosed | Undelivered] = asyncio.Queue()
        self._decoder = Decoder()
        self._num_moved = 0
        self._spawned: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def spawn(self, device_id: str, config: WorkerConfig) -> None:
        """Have the process started. Raises OSError when that is not possible now."""
        self._connector.send(Spawn(self.session, device_id, config))
        try:
            async with asyncio.timeout(SPAWN_SECONDS):
                self.pid = await self._spawned
        except TimeoutError:
            raise OSError(None, "the node does not answer") from None

    def send(self, message: ToWorker) -> None:
        """Put a message on its way; nothing happens when the worker is gone. A job goes after its files."""
        match message:
            case Evaluate(task_id, job):
                weights, data, moved = self._files_of(job)
                frames = encode(replace(message, job=moved))
                self._connector.send(RelayJob(self.session, task_id, frames, weights, data))
            case Prefetch(job):
                weights, _, moved = self._files_of(job)
                self._connector.send(RelayJob(self.session, 0, encode(Prefetch(moved)), weights, None))
            case Stop(task_id):
                self._connector.send(StopJob(self.session, task_id, encode(message)))
            case _:
                self._connector.send(Relay(self.session, encode(message)))

    async def receive(self, timeout_seconds: float) -> FromWorker | PipeClosed | Undelivered | None:
        """The next message; None when nothing came for that long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._inbox.get()
        except TimeoutError:
            return None

    async def end(self, term_grace_seconds: float) -> int:
        """End the process, whatever it is doing, and reap it; returns its exit status (-N for signal N)."""
        self._connector.send(EndProcess(self.session, term_grace_seconds))
        try:
            async with asyncio.timeout(_END_SECONDS + 2 * term_grace_seconds):
                return await asyncio.shield(self._ended)
        except TimeoutError:  # its actor ends it, now or once it has heard nothing for long
            self.was_ended_here = True
            return _KILLED

    async def kill(self) -> int:
        """End the process now, frozen or not, and reap it; returns its exit status."""
        return await self.end(0.0)

    def take(self, message: FromConnector) -> None:
        """What the connector says of this session."""
        match message:
            case Spawned(_, pid):
                self._resolve(self._spawned, pid)
            case SpawnFailed(_, reason):
                if not self._spawned.done():
                    self._spawned.set_exception(OSError(None, reason))
            case Frames(_, frames):
                self.is_stopped = False
                self._decode(frames)
            case ProcessStopped():
                self.is_stopped = True
            case FileMoved():
                self._num_moved += 1
                # The task advances, though not in the worker.
                self._inbox.put_nowait(Heartbeat(-self._num_moved))
            case JobUndelivered(_, task_id, reason, disk_is_full):
                error = StorageFull(reason) if disk_is_full else WorkerCrashed(reason)
                self._inbox.put_nowait(Undelivered(task_id, error))
            case SessionClosed(_, lost):
                self._inbox.put_nowait(PipeClosed(lost))
            case ProcessEnded(_, status, was_ended_here, is_stuck):
                self.was_ended_here, self.is_stuck = was_ended_here, is_stuck
                self._resolve(self._ended, status)

    def lose(self, reason: str) -> None:
        """The connector is gone, and with it all that it relayed."""
        self.take(SpawnFailed(self.session, reason))
        self.take(SessionClosed(self.session, reason))
        self.take(ProcessEnded(self.session, _KILLED, was_ended_here=True, is_stuck=False))

    def _decode(self, frames: bytes) -> None:
        try:
            for message in self._decoder.feed(frames):
                self._inbox.put_nowait(message)
        except MalformedMessage:  # or a forged one: this worker is not listened to any more
            self._inbox.put_nowait(PipeClosed())

    def _files_of(self, job: EvalJob) -> tuple[FileToSend, FileToSend | None, EvalJob]:
        """What the node must have for the job, and the job with the paths that these have there.

        Pieces travel in the job itself.
        """
        weights_size = job.weights_size if job.weights_size is not None else _size(job.weights_path)
        weights = FileToSend(job.weights_path, job.weights_checksum, weights_size)
        if job.pieces:
            path = f"{self._data_dir}/{weights.checksum}"
            return weights, None, replace(job, weights_path=path, weights_size=weights_size)
        data_checksum = job.data_checksum or _checksum(job.data_path)
        data = FileToSend(job.data_path, data_checksum, job.data_size)
        moved = replace(
            job,
            weights_path=f"{self._data_dir}/{weights.checksum}",
            weights_size=weights_size,
            data_path=f"{self._data_dir}/{data.checksum}",
            data_checksum=data_checksum,
        )
        return weights, data, moved

    @staticmethod
    def _resolve(future: asyncio.Future[int], value: int) -> None:
        if not future.done():
            future.set_result(value)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # the connector meets the same error, and reports it


def _checksum(path: str) -> str:
    """Blake2b-256, Base58; of nothing where the file cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        data = b""
    return base58.b58encode(hashlib.blake2b(data, digest_size=32).digest()).decode()
