"""One worker process on a node, from its spawn to its end, as the connector relays it."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from workers.cluster.cluster_errors import ActorLost, NotOurs, Undeliverable
from workers.cluster.device_actor import DeviceActor
from workers.cluster.file_sender import FileSender
from workers.cluster.messages import (
    FileMoved,
    Frames,
    FromConnector,
    JobUndelivered,
    ProcessEnded,
    ProcessStopped,
    RelayJob,
    SessionClosed,
    Spawn,
    Spawned,
    SpawnFailed,
    StopJob,
)
from workers.cluster.relay_actor import CLOSED, CUT_OFF, STOPPED
from workers.message_codec import encode

_READ_SECONDS = 2.0
"""How long an actor waits for its worker before it answers that there is nothing."""
_START_SECONDS = 60.0
"""How long an actor may take to start: its device may still be held by the one before."""
_MAX_WRITE_BYTES = 64 << 10
"""Frames hold keys, and what is larger than 100 KB Ray would put into an object."""

Send = Callable[[FromConnector], None]


class Session:
    """Relays the frames of one worker process. Used once."""

    def __init__(
        self, spawn: Spawn, actor: DeviceActor, files: FileSender, silence_seconds: float, send: Send
    ) -> None:
        self._number = spawn.session
        self._config = spawn.config
        self._actor = actor
        self._files = files
        self._silence_seconds = silence_seconds
        self._send = send
        self._to_worker: asyncio.Queue[bytes] = asyncio.Queue()
        self._deliveries: dict[asyncio.Task[None], RelayJob] = {}
        self._relaying = asyncio.create_task(self._relay())

    # -- what the service asks

    def relay(self, frames: bytes) -> None:
        """Send frames to the worker."""
        self._to_worker.put_nowait(frames)

    def relay_job(self, job: RelayJob) -> None:
        """Send the frames of a job once the node has its files."""
        delivery = asyncio.create_task(self._deliver(job))
        self._deliveries[delivery] = job
        delivery.add_done_callback(self._deliveries.pop)

    def stop_job(self, stop: StopJob) -> None:
        """Send this now. A worker that has not been sent the task yet is told first to stop it, and then of it."""
        self.relay(stop.frames)
        for delivery, job in list(self._deliveries.items()):
            if job.task_id == stop.task_id and not delivery.done():
                delivery.cancel()
                self.relay(job.frames)

    async def end(self, grace_seconds: float) -> None:
        """End the process and report its exit status."""
        self.close()
        try:
            answer = await self._actor.call(
                "end",
                self._number,
                grace_seconds,
                timeout_seconds=2 * grace_seconds + 2 * self._silence_seconds,
            )
            status, was_ended_here, is_stuck = (int(number) for number in answer.split())
        except (ActorLost, ValueError, AttributeError):
            status, was_ended_here, is_stuck = -9, 1, 0
        self._send(ProcessEnded(self._number, status, bool(was_ended_here), bool(is_stuck)))

    def close(self) -> None:
        """Relay nothing any more."""
        for task in (self._relaying, *self._deliveries):
            task.cancel()

    def lose(self, reason: str) -> None:
        """Its node is gone."""
        self.close()
        self._send(SessionClosed(self._number, reason))

    # -- from spawn to end

    async def _relay(self) -> None:
        try:
            await self._actor.start(_START_SECONDS)
            pid = await self._call("spawn", self._number, encode(self._config))
        except (ActorLost, NotOurs) as error:
            self._send(SpawnFailed(self._number, f"its actor {error}"))
            return
        if pid <= 0:
            self._send(SpawnFailed(self._number, os.strerror(-pid)))
            return
        self._send(Spawned(self._number, pid))
        writing = asyncio.create_task(self._write())
        try:
            await self._read()
            self._send(SessionClosed(self._number, ""))
        except ActorLost as lost:
            self._send(SessionClosed(self._number, f"was lost: its actor {lost}"))
        finally:
            writing.cancel()

    async def _read(self) -> None:
        while True:
            answer = await self._call("read", self._number, _READ_SECONDS, more_seconds=_READ_SECONDS)
            if not isinstance(answer, bytes) or answer[:1] == CLOSED:
                return
            if answer == CUT_OFF:
                self._actor.end()
                raise ActorLost("is cut off: the raylet of its node is stopped")
            if answer == STOPPED:
                self._send(ProcessStopped(self._number))
            elif len(answer) > 1:
                self._send(Frames(self._number, answer[1:]))

    async def _write(self) -> None:
        while True:
            frames = await self._to_worker.get()
            while not self._to_worker.empty() and len(frames) < _MAX_WRITE_BYTES // 2:
                frames += self._to_worker.get_nowait()
            for start in range(0, len(frames), _MAX_WRITE_BYTES):
                try:
                    await self._call("write", self._number, frames[start : start + _MAX_WRITE_BYTES])
                except ActorLost:
                    return  # the reader meets it too, and says so

    async def _deliver(self, job: RelayJob) -> None:
        try:
            await self._files.bring(
                self._actor, job.weights, job.data, lambda: self._send(FileMoved(self._number))
            )
        except Undeliverable as error:
            if job.task_id:
                self._send(JobUndelivered(self._number, job.task_id, str(error), error.disk_is_full))
        except ActorLost:
            pass  # the reader meets it too, and says so
        else:
            self.relay(job.frames)

    async def _call(self, method: str, *arguments: object, more_seconds: float = 0.0) -> Any:
        return await self._actor.call(
            method, *arguments, timeout_seconds=self._silence_seconds + more_seconds
        )
