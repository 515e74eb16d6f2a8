"""The checksum is Blake2b-256 in Base58, whatever library computes it and however the bytes come."""

import hashlib

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import checksum
from service.checksum import Hasher, checksum_of, is_checksum


def _by_hashlib(data: bytes) -> str:
    return base58.b58encode(hashlib.blake2b(data, digest_size=32).digest()).decode()


@given(st.lists(st.binary(max_size=700)), st.sampled_from([bytes, bytearray, memoryview]))
def test_pieces_of_any_kind_and_size(pieces: list[bytes], kind: type) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksum, "_SLICE_BYTES", 256)
        hasher = Hasher()
        for piece in pieces:
            hasher.update(kind(piece))
        assert hasher.checksum() == hasher.checksum() == _by_hashlib(b"".join(pieces))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sizes_about_a_slice(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert checksum_of(data[:size]) == _by_hashlib(data[:size])
    assert is_checksum(checksum_of(data[:size]))
