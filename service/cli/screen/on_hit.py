"""A shell command that is run for every hit."""

import sys

from service.cli.hook_command import run_hook
from service.cli.standard_streams import complain


class HitCommand:
    """Runs the command with a line on its standard input, one at a time; what it prints goes to standard error."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.num_failed = 0
        """Runs that ended with another exit code than 0."""

    async def run(self, line: str) -> None:
        """Wait until it has ended. A failure is said, and the screen goes on. Cancelling ends the command."""
        code = await run_hook(self._command, line, sys.stderr.fileno())
        if code:
            self.num_failed += 1
            complain(f"--on-hit ended with exit code {code}")
