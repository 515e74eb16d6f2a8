"""How long work is stopped from outside."""

from collections.abc import Callable

CancelCheck = Callable[[], None]
"""Called each time the work advances, from the thread that works; it may raise to stop the work."""


def never_cancelled() -> None:
    """The cancel check of work that nothing stops."""
