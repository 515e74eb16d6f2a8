"""What docs/decisions/0041 says of emulated products."""

import pytest
import torch

from benchmarks.emulated_precision import METHODS, cut_off, error, float32, tensor_core

ONE_PIECE, PIECES = "pieces of 8192", "pieces of 512"
WAYS = pytest.mark.parametrize("way", ["three bf16 parts", "two float16 parts"])


def test_an_accumulator_cuts_off_beyond_24_bits() -> None:
    x = torch.tensor([1 + 2**-23, 1 + 2**-23 + 2**-24, -1 - 2**-24, 0.0], dtype=torch.float64)
    assert cut_off(x).tolist() == [1 + 2**-23, 1 + 2**-23, -1, 0]


def test_what_is_exact_stays_exact() -> None:
    x = torch.arange(64.0).reshape(2, 32)
    assert torch.equal(tensor_core(x, x.T), x @ x.T)
    assert torch.equal(float32(x, x.T), x @ x.T)


@WAYS
def test_long_sums_shrink_and_pieces_cure_it(way: str) -> None:
    one, pieces = error(f"{way}, {ONE_PIECE}", 8192), error(f"{way}, {PIECES}", 8192)
    assert one.shrink < -8e-6
    assert one.rms > 5 * error("float32", 8192).rms
    assert pieces.rms < one.rms / 5
    assert pieces.rms < error("float32", 8192).rms


def test_pieces_of_512_are_needed_at_k_2048() -> None:
    """Of bf16 parts. Two float16 parts come within a tenth of float32."""
    plain = error("float32", 2048).rms
    assert error("three bf16 parts, pieces of 512", 2048).rms < plain
    assert error("three bf16 parts, pieces of 1024", 2048).rms > plain
    assert plain < error("two float16 parts, pieces of 512", 2048).rms < 1.1 * plain


@pytest.mark.parametrize("K", [256, 2048])
def test_tf32_and_bf16_are_of_another_order(K: int) -> None:
    assert (
        error("bf16", K).rms
        > 5 * error("tf32", K).rms
        > 200 * error("two float16 parts, pieces of 512", K).rms
    )


def test_every_method_has_its_error() -> None:
    assert all(0 < error(method, 256).rms < 1e-2 for method in METHODS)
