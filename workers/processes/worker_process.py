"""One worker process of this machine as its parent holds it: messages in, messages out. No policy here."""

import asyncio
import logging

from workers.message_codec import Decoder, MalformedMessage, encode
from workers.messages import FromWorker, ToWorker
from workers.processes.child_process import ChildProcess, Pipe, worker_environment
from workers.processes.process_handle import PipeClosed
from workers.types import WorkerConfig

logger = logging.getLogger(__name__)

ENTRY_MODULE = "workers.worker.main"


class WorkerProcess:
    """A `ProcessHandle` of a worker that is a child of this process. Make one with `spawn`."""

    def __init__(self, child: ChildProcess, pipe: "_Pipe") -> None:
        self._child = child
        self._pipe = pipe
        self.pid = child.pid

    @classmethod
    async def spawn(cls, config: WorkerConfig, entry_module: str = ENTRY_MODULE) -> "WorkerProcess":
        """Start `python -m entry_module` with one end of a new pipe.

        Must run on a thread that outlives the worker: the kernel ends the worker with it.
        Raises OSError when the machine cannot run another process.
        """
        pipe = _Pipe()
        child = await ChildProcess.spawn(
            entry_module, pipe, worker_environment(config), f"worker on {config.device}"
        )
        return cls(child, pipe)

    @property
    def was_ended_here(self) -> bool:
        """Whether a signal of ours may have ended it."""
        return self._child.was_ended_here

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP) and not continued yet."""
        return self._child.is_stopped

    @property
    def is_stuck(self) -> bool:
        """Whether it was there still after SIGKILL."""
        return self._child.is_stuck

    def send(self, message: ToWorker) -> None:
        """Put a message on its way; nothing happens when the worker is gone."""
        self._child.write(encode(message))

    async def receive(self, timeout_seconds: float) -> FromWorker | PipeClosed | None:
        """The next message; None when the worker sent nothing for that long."""
        try:
            async with asyncio.timeout(timeout_seconds):  # wait_for of Python 3.11 can lose a cancellation
                return await self._pipe.inbox.get()
        except TimeoutError:
            return None

    async def end(self, term_grace_seconds: float) -> int:
        """End the process, whatever it is doing, and reap it; returns its exit status (-N for signal N)."""
        return await self._child.end(term_grace_seconds)

    async def kill(self) -> int:
        """End the process now, frozen or not, and reap it; returns its exit status."""
        return await self._child.kill()


class _Pipe(Pipe):
    """Our end: puts the worker's messages into an inbox, in order."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[FromWorker | PipeClosed] = asyncio.Queue()
        self._decoder = Decoder()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self.inbox.put_nowait(message)
        except MalformedMessage as error:  # or a forged one: this worker is not listened to any more
            logger.error("a worker sent a malformed message: %s", error)
            self.inbox.put_nowait(PipeClosed())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.inbox.put_nowait(PipeClosed())
