"""One worker process as the parent holds it: spawned, sent messages, ended, reaped. No policy here."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

from workers.message_codec import Decoder, MalformedMessage, encode
from workers.messages import FromWorker, ToWorker
from workers.processes.isolated_python import python_command, python_environment
from workers.processes.worker_output import WorkerOutput
from workers.types import WorkerConfig

logger = logging.getLogger(__name__)

ENTRY_MODULE = "workers.worker.main"
_REAP_INTERVAL_SECONDS = 0.01
_KILL_SECONDS = 10.0
"""A process that is there longer than this after SIGKILL is stuck in the kernel for good."""
_KEPT_WHEN_FREED_BYTES = 32 << 20
"""The most glibc takes. By default it gives a batch's memory back to the system, and the next faults it in again."""


@dataclass(frozen=True, slots=True)
class PipeClosed:
    """The worker's end of the pipe is closed: it died, or is about to."""


class WorkerProcess:
    """A worker process and our end of its pipe. Make one with `spawn`."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        transport: asyncio.Transport,
        pipe: "_Pipe",
        output: WorkerOutput,
    ) -> None:
        self._popen = popen
        self._transport = transport
        self._pipe = pipe
        self._output = output
        self.pid = popen.pid
        self.was_ended_here = False
        """Whether a signal of ours may have ended it."""

    @classmethod
    async def spawn(cls, config: WorkerConfig, entry_module: str = ENTRY_MODULE) -> "WorkerProcess":
        """Start `python -m entry_module` with one end of a new pipe.

        Must run on a thread that outlives the worker: the kernel ends the worker with it.
        Raises OSError when the machine cannot run another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                transport, pipe = await asyncio.get_running_loop().create_unix_connection(_Pipe, sock=ours)
            except BaseException:
                ours.close()
                raise
            try:
                popen = _start(entry_module, theirs.fileno(), _environment(config))
            except BaseException:
                transport.close()
                raise
        process = cls(popen, transport, pipe, WorkerOutput(config.device))
        try:
            await process._output.read_from(popen)
        except BaseException:
            await asyncio.shield(process.kill())
            raise
        return process

    def send(self, message: ToWorker) -> None:
        """Put a message on its way; nothing happens when the worker is gone."""
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    async def receive(self, timeout_seconds: float) -> FromWorker | PipeClosed | None:
        """The next message; None when the worker sent nothing for that long."""
        try:
            async with asyncio.timeout(timeout_seconds):  # wait_for of Python 3.11 can lose a cancellation
                return await self._pipe.inbox.get()
        except TimeoutError:
            return None

    async def end(self, term_grace_seconds: float) -> int:
        """End the process, whatever it is doing, and reap it; returns its exit status (-N for signal N).

        A closed pipe makes a healthy worker leave by itself; SIGTERM asks a busy one, SIGKILL ends any.
        """
        self._transport.close()
        if self._pipe.closed_by_worker:  # it is ending by itself
            await self._exited_within(term_grace_seconds)
        if self._popen.poll() is None:
            self.was_ended_here = True
            self._popen.terminate()
            await self._exited_within(term_grace_seconds)
        return await self.kill()

    async def kill(self) -> int:
        """End the process now, frozen or not, and reap it; returns its exit status."""
        self._transport.close()
        if self._popen.poll() is None:
            self.was_ended_here = True
            self._popen.send_signal(signal.SIGKILL)
            await self._exited_within(_KILL_SECONDS)
        await self._output.close()
        if self._popen.returncode is None:
            logger.error("process %d cannot even be killed: its driver hangs", self.pid)
            return -signal.SIGKILL
        return self._popen.returncode

    async def _exited_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._popen.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(_REAP_INTERVAL_SECONDS)


class _Pipe(asyncio.Protocol):
    """Our end: puts the worker's messages into an inbox, in order."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[FromWorker | PipeClosed] = asyncio.Queue()
        self.closed_by_worker = False
        self._decoder = Decoder()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self.inbox.put_nowait(message)
        except MalformedMessage as error:  # or a forged one: this worker is not listened to any more
            logger.error("a worker sent a malformed message: %s", error)
            self.inbox.put_nowait(PipeClosed())

    def eof_received(self) -> None:
        self.closed_by_worker = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_by_worker = self.closed_by_worker or exc is not None
        self.inbox.put_nowait(PipeClosed())


def _start(entry_module: str, fd: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        python_command("-m", entry_module, str(fd), str(os.getpid())),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(fd,),
        env=environment,
        cwd="/",  # a folder that is always there
        process_group=0,  # Ctrl-C in the terminal reaches the parent alone
    )


def _environment(config: WorkerConfig) -> dict[str, str]:
    """The worker's: our import path, its share of threads, and none of the service's secrets."""
    environment = python_environment()
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic cuBLAS; read when CUDA starts
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the core to other workers
    for threshold in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # glibc: reuse what was freed
        environment.setdefault(threshold, str(_KEPT_WHEN_FREED_BYTES))
    if config.num_threads is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(config.num_threads)
    return environment
