"""Which pieces of a screen go together: as many as make one batch, or as come in a short time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from service.scoring.screen import Piece

T = TypeVar("T")

GATHER_SECONDS = 0.05
"""How long a group that has room waits for another piece."""


async def in_groups(
    pieces: AsyncIterable[Piece], num_sequences_of: Callable[[Piece], int], most: int
) -> AsyncGenerator[list[Piece], None]:
    """The pieces in the order they come, in groups of at most `most` sequences, or of one piece."""
    group: list[Piece] = []
    num_sequences = 0
    async with aclosing(_with_pauses(pieces, GATHER_SECONDS)) as coming:
        async for piece in coming:
            size = 0 if piece is None else num_sequences_of(piece)
            if group and (piece is None or num_sequences + size > most):
                yield group
                group, num_sequences = [], 0
            if piece is not None:
                group.append(piece)
                num_sequences += size
    if group:
        yield group


def packed(pieces: Iterable[T], num_sequences_of: Callable[[T], int], most: int) -> list[list[T]]:
    """The same for pieces that are all here, each of at most `most` sequences."""
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
