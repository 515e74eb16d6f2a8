"""The pure arithmetic that decides a competition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidKey, ZeroEmbedding
from service.scoring.competition import (
    cosine_distance,
    is_near_tie,
    margin,
    parse_decryption_key,
    pick_winner,
)
from tests.recipe import golden_competitions


@pytest.mark.parametrize("name", sorted(golden_competitions()))
def test_golden_winner_and_distance(name: str) -> None:
    golden = golden_competitions()[name]
    assert pick_winner(golden.losses) == golden.winner
    assert cosine_distance(golden.embedding, golden.target) == pytest.approx(golden.distance, rel=1e-6)


def test_the_first_wins_a_tie() -> None:
    assert pick_winner([2.0, 1.0, 1.0]) == 1


def test_a_model_without_a_finite_loss_does_not_win() -> None:
    assert pick_winner([math.nan, None, math.inf, 3.0]) == 3
    assert pick_winner([math.nan, None]) is None


def test_margin_is_to_the_second_best() -> None:
    assert margin([3.0, None, 1.0, 1.5]) == 0.5
    assert margin([3.0, math.nan]) is None


@pytest.mark.parametrize(
    ("loss", "lead", "near"),
    [(5.0, 0.05, True), (5.0, 0.051, False), (0.1, 0.01, True), (0.1, 0.011, False), (5.0, None, False)],
)
def test_a_near_tie_is_within_one_percent_or_one_hundredth(
    loss: float, lead: float | None, near: bool
) -> None:
    assert is_near_tie(loss, lead) is near


def test_a_zero_vector_has_no_distance() -> None:
    with pytest.raises(ZeroEmbedding) as with_model_index:
        cosine_distance(np.zeros(4), np.ones(4))
    with pytest.raises(ZeroEmbedding) as of_target:
        cosine_distance(np.ones(4), np.zeros(4))
    assert (with_model_index.value.fault, of_target.value.fault) == ("model_owner", "client")


@given(st.lists(st.floats(-1e300, 1e300).filter(lambda x: abs(x) > 1e-300), min_size=1, max_size=9))
def test_distance_stays_finite_and_in_its_range(vector: list[float]) -> None:
    assert cosine_distance(vector, vector) == pytest.approx(0.0, abs=1e-12)
    assert cosine_distance(vector, [-x for x in vector]) == pytest.approx(2.0, abs=1e-12)


def test_a_key_is_32_bytes_in_base58() -> None:
    assert parse_decryption_key("1" * 32) == bytes(32)
    for text in ("", "1" * 31, "0" * 32, "l" * 43, "1" * 45, "z" * 10_000, "é" * 32):
        with pytest.raises(InvalidKey) as refused:
            parse_decryption_key(text)
        assert not text or text not in refused.value.detail
