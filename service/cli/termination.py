"""Lets a command clean up after itself on SIGTERM, as it does on Ctrl-C."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM does what Ctrl-C does. Gives a question: was there a SIGTERM?"""
    terminated = False

    def interrupt(_number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        on_ctrl_c = signal.getsignal(signal.SIGINT)  # asyncio's, while a loop runs: it cancels the main task
        if not callable(on_ctrl_c):
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    with _ctrl_c_has_a_handler():
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            yield lambda: terminated
        finally:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _ctrl_c_has_a_handler() -> Iterator[None]:
    """Where Ctrl-C is ignored, as in the background of a shell: block it instead, which has the same effect.

    asyncio handles an interrupt only where Python's own handler is in place when a loop starts.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # also discards one that is pending
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
