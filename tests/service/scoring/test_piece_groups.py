"""Groups of the pieces of a screen: as many together as are quick enough."""

from collections.abc import AsyncIterator

import pytest

from service.scoring.piece_groups import GROUP_SECONDS, GroupSize, in_groups
from service.scoring.screen import Piece


def test_groups_grow_while_they_are_quick() -> None:
    size, sizes = GroupSize(16), []
    for _ in range(6):
        sizes.append(size.most)
        size.learn(size.most, eval_seconds=0.1 * size.most, load_seconds=0.0)
    assert sizes == [1, 2, 4, 8, 16, 16]


def test_what_takes_long_goes_alone() -> None:
    size = GroupSize(16)
    size.learn(1, eval_seconds=60.0, load_seconds=0.0)
    assert size.most == 1


def test_a_group_that_took_too_long_is_followed_by_smaller_ones() -> None:
    size = GroupSize(16)
    for count in (1, 2, 4, 8):
        size.learn(count, eval_seconds=0.0, load_seconds=0.0)  # their results were kept
    assert size.most == 16
    size.learn(16, eval_seconds=4 * GROUP_SECONDS, load_seconds=0.0)
    assert size.most == 4
    size.learn(4, eval_seconds=GROUP_SECONDS, load_seconds=0.0)
    assert size.most == 4


def test_where_weights_are_loaded_each_time_groups_take_longer() -> None:
    size = GroupSize(16)
    size.learn(1, eval_seconds=20.0, load_seconds=5.0)
    assert size.most == 2
    size.learn(2, eval_seconds=50.0, load_seconds=5.0)
    assert size.most == 1


@pytest.mark.parametrize(("most", "sizes"), [(1, [1, 1, 1, 1, 1]), (3, [3, 2]), (100, [5])])
async def test_each_group_has_as_many_as_the_size_is_then(most: int, sizes: list[int]) -> None:
    async def pieces() -> AsyncIterator[Piece]:
        for number in range(5):
            yield Piece(number, b"data")

    groups = [group async for group in in_groups(pieces(), lambda piece: 1, lambda: most)]
    assert [len(group) for group in groups] == sizes
    assert [piece.id for group in groups for piece in group] == list(range(5))
