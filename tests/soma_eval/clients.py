"""Both clients of soma_eval, called the same way."""

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from soma_eval import AsyncClient, Client
from soma_eval.responses import ScreenCounts, ScreenLine
from soma_eval.screening import AsyncScreening

MakeClient = Callable[..., Client]


class BlockingScreening:
    """An AsyncScreening that is used like a Screening."""

    def __init__(self, screening: AsyncScreening, loop: asyncio.AbstractEventLoop) -> None:
        self._screening = screening
        self._loop = loop

    @property
    def summary(self) -> ScreenCounts | None:
        return self._screening.summary

    def __iter__(self) -> "BlockingScreening":
        return self

    def __next__(self) -> ScreenLine:
        try:
            return self._loop.run_until_complete(anext(self._screening))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        self._loop.run_until_complete(self._screening.aclose())

    def __enter__(self) -> "BlockingScreening":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingAsyncClient:
    """An AsyncClient that is called like a Client: each call runs its event loop until it is done."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._client, name))

    def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._loop.run_until_complete(method(*args, **options))

    def follow(self, job: Any) -> Generator[Any]:
        events = self._client.follow(job)
        try:
            while True:
                yield self._loop.run_until_complete(anext(events))
        except StopAsyncIteration:
            return
        finally:
            self._loop.run_until_complete(events.aclose())

    def screen(self, **arguments: Any) -> "BlockingScreening":
        return BlockingScreening(self._client.screen(**arguments), self._loop)

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()

    def __repr__(self) -> str:
        return repr(self._client)
