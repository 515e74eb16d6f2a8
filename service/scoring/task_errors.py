"""Which error of several counts, and which of this machine's own lacks is behind an exception."""

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from service.errors import ScoringError, exhaustion_of
from service.log import log_bug

T = TypeVar("T")


def first_of_ours(errors: Sequence[BaseException]) -> BaseException:
    """The first of several simultaneous errors that is this service's fault; without one, the first of all.

    Trouble of this machine may be the cause of what looks like somebody else's fault.
    """
    ours = (error for error in errors if not isinstance(error, ScoringError) or error.fault == "service")
    return next(ours, errors[0])


async def all_at_once(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results of all, in order. The first failure cancels the others; raises `first_of_ours`."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failures:
        raise first_of_ours(failures.exceptions) from None
    return [task.result() for task in tasks]


@contextmanager
def own_trouble() -> Iterator[None]:
    """Raises what this machine lacks as ServiceTrouble, where that is behind an exception of another kind."""
    try:
        yield
    except ScoringError:
        raise
    except Exception as error:
        trouble = exhaustion_of(error)
        if trouble is None:
            raise
        log_bug(error)
        raise trouble from error
