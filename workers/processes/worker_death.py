"""Why a worker process ended, and what that says about the evaluation it had in hand."""

import enum
import signal
from dataclasses import dataclass

from workers.messages import Evaluate

FAULT_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGFPE, signal.SIGILL})
"""The only ends that can count against an evaluation.

SIGBUS is not among them: a mapped file became shorter, a disk is full or memory is broken, all of this machine.
Nor is SIGABRT: that is how C++ code ends when memory or a thread is refused to it.
"""


class Cause(enum.Enum):
    """What ended a worker."""

    FAULT = "fault"
    """A fault of memory or arithmetic: caused by the evaluation, if the device proves to be sound."""
    ERROR = "error"
    """An unexpected error, of the device or of this machine."""
    HUNG = "hung"
    """It made no progress, and was ended."""
    KILLED = "killed"
    """SIGKILL from outside: an operator, or the system that was out of memory."""
    LOST = "lost"
    """Its machine, or the connection to it, is gone: what it computed there says nothing."""
    STUCK = "stuck"
    """It is there still after SIGKILL: its device is lost until the machine starts again."""
    OTHER = "other"
    """Nothing that says anything about the device or the evaluation."""


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a process, and what it had in hand."""

    reason: str
    cause: Cause
    starting: bool = False
    """It had not passed its self-test yet."""
    task: Evaluate | None = None
    """The task it had accepted; None when it was idle, or its task had been stopped."""
    unaccepted_task: Evaluate | None = None
    """A task that was on its way to it."""


def cause_of(status: int) -> Cause:
    """From the exit status of a process that this one did not end: -N for signal N."""
    if -status in FAULT_SIGNALS:
        return Cause.FAULT
    if status > 0 or -status in {signal.SIGABRT, signal.SIGBUS, signal.SIGTRAP, signal.SIGSYS}:
        return Cause.ERROR
    return Cause.KILLED if -status == signal.SIGKILL else Cause.OTHER


def describe(status: int) -> str:
    """An exit status in words."""
    return f"ended with signal {-status}" if status < 0 else f"ended with status {status}"
