"""What a command says when it is asked for something that cannot be done."""


class BadUsage(Exception):
    """The command line asks for something that cannot be done; the message says what to do instead."""
