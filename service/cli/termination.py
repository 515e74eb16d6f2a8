"""Lets a command clean up after itself on SIGTERM, as it does on Ctrl-C."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM does what Ctrl-C does. Gives a question: was there a SIGTERM?"""
    came = False

    def interrupt(_number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(on_ctrl_c):  # ignored, as in the background of a shell; SIGTERM must not be
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
