"""A shell command of the user's that is given a line of JSON when something has happened.

What the line says never becomes part of the command: it arrives on standard input. Our own settings, API keys among
them, are not in its environment.
"""

import asyncio
import contextlib
import os
import signal

from service.environment import PREFIX

_END_SECONDS = 5.0


async def run_hook(command: str, line: str, output: int) -> int:
    """The exit code. What the command prints goes to the descriptor `output`. Cancelling ends it, and what it started.

    Raises OSError where no process can be started.
    """
    starting = asyncio.create_task(
        asyncio.create_subprocess_shell(
            command,
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)  # cancelled half-way, it would end the shell alone
        await process.communicate(line.encode())
    except asyncio.CancelledError:
        await _end(await starting)
        raise
    assert process.returncode is not None
    return process.returncode


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
                return
