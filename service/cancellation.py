"""Work that something else may end: a signal, a client that leaves."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import NoReturn, TypeVar

T = TypeVar("T")


async def cancel_when(watch: Coroutine[None, None, NoReturn], work: Awaitable[T]) -> T:
    """Await the work in this very task. When `watch` raises first, the work is cancelled and that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch)
            result = await work
            watching.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return result
