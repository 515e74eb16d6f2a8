"""A shell command that is run for every hit."""

import asyncio
import contextlib
import os
import signal
import sys

from service.cli.standard_streams import complain
from service.environment import PREFIX


class HitCommand:
    """Runs the command with a line on its standard input, one at a time; what it prints goes to standard error."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.num_failed = 0
        """Runs that ended with another exit code than 0."""

    async def run(self, line: str) -> None:
        """Wait until it has ended. A failure is said, and the screen goes on. Cancelling ends the command."""
        process = await asyncio.create_subprocess_shell(
            self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            stderr=sys.stderr.fileno(),
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
            start_new_session=True,
        )
        try:
            await process.communicate(line.encode())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
        if process.returncode:
            self.num_failed += 1
            complain(f"--on-hit ended with exit code {process.returncode}")
