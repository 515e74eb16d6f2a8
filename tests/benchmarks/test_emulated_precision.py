"""What docs/decisions/0041 says of emulated products."""

import pytest
import torch

from benchmarks.emulated_precision import METHODS, cut_off, error, float32, tensor_core

ONE_PIECE, PIECES = "float32-split, pieces of 8192", "float32-split, pieces of 512"


def test_an_accumulator_cuts_off_beyond_24_bits() -> None:
    x = torch.tensor([1 + 2**-23, 1 + 2**-23 + 2**-24, -1 - 2**-24, 0.0], dtype=torch.float64)
    assert cut_off(x).tolist() == [1 + 2**-23, 1 + 2**-23, -1, 0]


def test_what_is_exact_stays_exact() -> None:
    x = torch.arange(64.0).reshape(2, 32)
    assert torch.equal(tensor_core(x, x.T), x @ x.T)
    assert torch.equal(float32(x, x.T), x @ x.T)


def test_long_sums_shrink_and_pieces_cure_it() -> None:
    one, pieces = error(ONE_PIECE, 8192), error(PIECES, 8192)
    assert one.shrink < -8e-6
    assert one.rms > 5 * error("float32", 8192).rms
    assert pieces.rms < one.rms / 5
    assert pieces.rms < error("float32", 8192).rms


def test_pieces_of_512_are_needed_at_k_2048() -> None:
    """They come within a tenth of float32, and longer ones do not."""
    plain = error("float32", 2048).rms
    assert plain < error(PIECES, 2048).rms < 1.1 * plain
    assert error("float32-split, pieces of 1024", 2048).rms > 2 * plain


@pytest.mark.parametrize("K", [256, 2048])
def test_tf32_and_bf16_are_of_another_order(K: int) -> None:
    assert error("bf16", K).rms > 5 * error("tf32", K).rms > 200 * error(PIECES, K).rms


def test_every_method_has_its_error() -> None:
    assert all(0 < error(method, 256).rms < 1e-2 for method in METHODS)
