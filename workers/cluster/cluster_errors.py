"""What goes wrong between the head and its nodes; the text says what, as the end of a sentence."""


class CannotJoin(Exception):
    """There is no cluster to work with."""


class ActorLost(Exception):
    """The actor is gone, or does not answer."""


class CannotPut(Exception):
    """Ray cannot hold an object."""


class NotOurs(Exception):
    """A node has another version of something that must be equal."""


class Undeliverable(Exception):
    """A node could not get or keep a file."""

    def __init__(self, reason: str, *, disk_is_full: bool = False) -> None:
        super().__init__(reason)
        self.disk_is_full = disk_is_full
