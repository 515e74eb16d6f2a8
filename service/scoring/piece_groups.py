"""Which pieces of a screen go together: as many as make one batch, or as come in a short time, or fewer where these
take long."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from service.scoring.screen import Piece

T = TypeVar("T")

GATHER_SECONDS = 0.05
"""How long a group that has room waits for another piece."""


GROUP_SECONDS = 10.0
"""What the models may take to compute a group: none of its lines is known before all are."""
LOADS_PER_GROUP = 8.0
"""Where weights are loaded anew for each group, it takes this many times as long to compute."""


class GroupSize:
    """How many sequences the next group has. It begins with one, so that the first line comes soon."""

    def __init__(self, largest: int) -> None:
        self.most = 1
        self._largest = largest

    def learn(self, num_sequences: int, eval_seconds: float, load_seconds: float) -> None:
        """What all models together took for a group of so many sequences; 0.0 where its results were kept.

        Growing step by step, it finds out whether more sequences keep more of a device busy.
        """
        limit = max(GROUP_SECONDS, LOADS_PER_GROUP * load_seconds)
        if eval_seconds > limit:
            self.most = max(1, int(num_sequences * limit / eval_seconds))
        elif eval_seconds <= limit / 2:
            self.most = min(self._largest, max(self.most, 2 * num_sequences))


async def in_groups(
    pieces: AsyncIterable[Piece], num_sequences_of: Callable[[Piece], int], most: Callable[[], int]
) -> AsyncGenerator[list[Piece], None]:
    """The pieces in the order they come, in groups of at most `most()` sequences, or of one piece."""
    group: list[Piece] = []
    num_sequences = 0
    async with aclosing(_with_pauses(pieces, GATHER_SECONDS)) as coming:
        async for piece in coming:
            size = 0 if piece is None else num_sequences_of(piece)
            if group and (piece is None or num_sequences + size > most()):
                yield group
                group, num_sequences = [], 0
            if piece is not None:
                group.append(piece)
                num_sequences += size
    if group:
        yield group


def packed(pieces: Iterable[T], num_sequences_of: Callable[[T], int], most: int) -> list[list[T]]:
    """Pieces that are all here, each of at most `most` sequences, in groups of at most so many."""
    groups: list[list[T]] = []
    num_sequences = most
    for piece in pieces:
        size = num_sequences_of(piece)
        if num_sequences + size > most:
            groups.append([])
            num_sequences = 0
        groups[-1].append(piece)
        num_sequences += size
    return groups


async def _with_pauses(pieces: AsyncIterable[Piece], seconds: float) -> AsyncGenerator[Piece | None, None]:
    """The pieces, and None where the next one takes longer than that."""
    source = aiter(pieces)
    coming = asyncio.create_task(_next(source))
    try:
        while True:
            await asyncio.wait([coming], timeout=seconds)
            if not coming.done():
                yield None
            piece = await coming
            if piece is None:
                return
            coming = asyncio.create_task(_next(source))
            yield piece
    finally:
        coming.cancel()
        await asyncio.wait([coming])


async def _next(source: AsyncIterator[Piece]) -> Piece | None:
    return await anext(source, None)
