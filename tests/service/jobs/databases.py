"""What makes a Database, each time of the same place: after the first is closed, what a restarted service finds."""

from collections.abc import Callable

from service.jobs.database import Database

OpenDatabase = Callable[[], Database]
