"""A child of this process that has one end of a pipe: spawned, written to, ended, reaped. No messages here."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import time

from workers.architectures import ARCHITECTURE_VERSIONS, load_architecture
from workers.processes.isolated_python import python_command, python_environment
from workers.processes.worker_output import WorkerOutput
from workers.types import WorkerConfig

logger = logging.getLogger(__name__)

_REAP_INTERVAL_SECONDS = 0.01
_KILL_SECONDS = 10.0
"""A process that is there longer than this after SIGKILL is stuck in the kernel for good."""
_KEPT_WHEN_FREED_BYTES = 32 << 20
"""The most glibc takes. By default it gives a batch's memory back to the system, and the next faults it in again."""


class Pipe(asyncio.Protocol):
    """Our end of the pipe: notes when the child has closed its end."""

    closed_by_child = False

    def eof_received(self) -> None:
        """The child closed its end; ours is closed too."""
        self.closed_by_child = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed, by whoever."""
        self.closed_by_child = self.closed_by_child or exc is not None


class ChildProcess:
    """A child and our end of its pipe. Make one with `spawn`."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        transport: asyncio.Transport,
        pipe: Pipe,
        output: WorkerOutput,
    ) -> None:
        self._popen = popen
        self._pipe = pipe
        self._output = output
        self.transport = transport
        self.pid = popen.pid
        self.was_ended_here = False
        """Whether a signal of ours may have ended it."""
        self.is_stuck = False
        """Whether it was there still after SIGKILL."""

    @classmethod
    async def spawn(
        cls, entry_module: str, pipe: Pipe, environment: dict[str, str], name: str
    ) -> "ChildProcess":
        """Start `python -m entry_module FD PARENT_PID`; what it prints is logged under `name`.

        Must run on a thread that outlives the child: the kernel ends the child with it.
        Raises OSError when the machine cannot run another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                transport, _ = await asyncio.get_running_loop().create_unix_connection(
                    lambda: pipe, sock=ours
                )
            except BaseException:
                ours.close()
                raise
            try:
                popen = _start(entry_module, theirs.fileno(), environment)
            except BaseException:
                transport.close()
                raise
        process = cls(popen, transport, pipe, WorkerOutput(name))
        try:
            await process._output.read_from(popen)
        except BaseException:
            await asyncio.shield(process.kill())
            raise
        return process

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP) and not continued yet: no thread of it runs, whatever it was doing."""
        if self._popen.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it has ended, and is not reaped yet
            return False

    def write(self, data: bytes) -> None:
        """Put bytes on their way; nothing happens when the child is gone."""
        if not self.transport.is_closing():
            self.transport.write(data)

    async def end(self, term_grace_seconds: float) -> int:
        """End the process, whatever it is doing, and reap it; returns its exit status (-N for signal N).

        A closed pipe makes a healthy worker leave by itself; SIGTERM asks a busy one, SIGKILL ends any.
        """
        self.transport.close()
        if self._pipe.closed_by_child:  # it is ending by itself
            await self._exited_within(term_grace_seconds)
        if self._popen.poll() is None:
            self.was_ended_here = True
            self._popen.terminate()
            await self._exited_within(term_grace_seconds)
        return await self.kill()

    async def kill(self) -> int:
        """End the process now, frozen or not, and reap it; returns its exit status."""
        self.transport.close()
        if self._popen.poll() is None:
            self.was_ended_here = True
            self._popen.send_signal(signal.SIGKILL)
            await self._exited_within(_KILL_SECONDS)
        await self._output.close()
        if self._popen.returncode is None:
            logger.error("process %d cannot even be killed: its driver hangs", self.pid)
            self.is_stuck = True
            return -signal.SIGKILL
        return self._popen.returncode

    async def _exited_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._popen.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(_REAP_INTERVAL_SECONDS)


def worker_environment(config: WorkerConfig) -> dict[str, str]:
    """A worker's: our import path, its share of threads, none of the secrets, nothing that changes numbers."""
    environment = {name: value for name, value in python_environment().items() if not _changes_numbers(name)}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic cuBLAS; read when CUDA starts
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the core to other workers
    for threshold in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # glibc: reuse what was freed
        environment.setdefault(threshold, str(_KEPT_WHEN_FREED_BYTES))
    if config.num_threads is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(config.num_threads)
    return environment


def _changes_numbers(variable: str) -> bool:
    return any(load_architecture(version).changes_numbers(variable) for version in ARCHITECTURE_VERSIONS)


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
