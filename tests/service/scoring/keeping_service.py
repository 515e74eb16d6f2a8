"""A service in this process that keeps its results, for tests of what is kept and given out again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.in_process_pool import Answer
from tests.in_process_service import InProcessService, in_process_service

NO_CACHE = {"Cache-Control": "no-cache"}
"""Headers of a request that is to be computed anew."""


@contextmanager
def keeping_service(
    folder: Path, answers: dict[str, Answer] | None = None, **settings: Any
) -> Iterator[InProcessService]:
    """A service over this data folder; `answers` are what its pool gives."""
    with in_process_service(folder, answers, **{"max_kept_results": 1000, **settings}) as service:
        yield service
