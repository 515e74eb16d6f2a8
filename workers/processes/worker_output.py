"""What a worker process prints, such as a library's warning or the last words of a crash, as lines of the log."""

import asyncio
import logging
import subprocess

logger = logging.getLogger(__name__)

MAX_LINES = 200
"""Of one process; what it prints beyond is dropped."""
MAX_LINE_CHARACTERS = 500

_LAST_WORDS_SECONDS = 1.0
"""How long to wait for the end of the output once the process has ended."""


class WorkerOutput(asyncio.Protocol):
    """Reads stdout and stderr of one process, and logs them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._transport: asyncio.BaseTransport | None = None
        self._ended = asyncio.Event()
        self._rest = b""
        self._num_lines = 0

    async def read_from(self, popen: subprocess.Popen[bytes]) -> None:
        """Begin; the process was started with a pipe for its stdout."""
        await asyncio.get_running_loop().connect_read_pipe(lambda: self, popen.stdout)

    async def close(self) -> None:
        """The process has ended: log its last words."""
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is being read."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Log the lines that are complete, or longer than is kept."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > 4 * MAX_LINE_CHARACTERS:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._log(line)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has closed its end."""
        self._log(self._rest)
        self._ended.set()

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()[:MAX_LINE_CHARACTERS]
        if not text or self._num_lines > MAX_LINES:
            return
        self._num_lines += 1
        if self._num_lines > MAX_LINES:
            text = "(it prints too much: the rest is dropped)"
        printable = "".join(each if each.isprintable() else "?" for each in text)
        logger.warning("%s: %s", self._name, printable)
