"""What the command line ends with."""

from enum import IntEnum


class ExitCode(IntEnum):
    """A script can tell from it whose turn it is."""

    GOOD = 0
    AT_FAULT = 1
    """The weights or the data are."""
    USAGE = 2
    MACHINE = 3
    """This machine or the network is at fault: another try may succeed."""
    INTERRUPTED = 130
    """By Ctrl-C."""
    TERMINATED = 143
    """By SIGTERM."""
