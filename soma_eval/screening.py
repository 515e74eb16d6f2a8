"""A screen as its caller sees it: piece after piece while the service works, and the summary at the end."""

from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Self

from .exchange import ScreenExchange
from .responses import ScreenCounts, ScreenLine


class Screening:
    """An iterator of the results of pieces, in the order in which they are done.

    What `Client.eval` raises, `next` raises. To stop earlier, close it, or use it in a `with` block: the service then
    stops the work.
    """

    def __init__(self, pieces: Generator[ScreenLine], exchange: ScreenExchange) -> None:
        self._pieces = pieces
        self._exchange = exchange

    @property
    def summary(self) -> ScreenCounts | None:
        """The counts of all pieces; None before the last one."""
        return self._exchange.summary

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ScreenLine:
        return next(self._pieces)

    def close(self) -> None:
        """Close the connection, which stops the service's work."""
        self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncScreening:
    """The same for `async for` and `async with`."""

    def __init__(self, pieces: AsyncGenerator[ScreenLine], exchange: ScreenExchange) -> None:
        self._pieces = pieces
        self._exchange = exchange

    @property
    def summary(self) -> ScreenCounts | None:
        """The counts of all pieces; None before the last one."""
        return self._exchange.summary

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ScreenLine:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Close the connection, which stops the service's work."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
