"""The two ways in which a command refuses or fails with a sentence of its own."""


class BadUsage(Exception):
    """The command line asks for something that cannot be done; the message says what to do instead."""


class CommandFailed(Exception):
    """Something failed for reasons of this machine; the message says what failed."""
