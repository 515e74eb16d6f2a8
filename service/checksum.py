"""The network's checksum: Blake2b-256, written in Base58. Its text is safe as a file name."""

import base58
from nacl.hashlib import blake2b

CHECKSUM_BYTES = 32
_SLICE_BYTES = 1 << 20
_MAX_TEXT_LENGTH = 44  # 58**43 < 2**256 <= 58**44


class Hasher:
    """The checksum of bytes as they come. `update` may run in a thread: it keeps the GIL for a copy only.

    libsodium is faster than hashlib where several cores are at work, and takes nothing but `bytes`.
    """

    def __init__(self) -> None:
        self._digest = blake2b(digest_size=CHECKSUM_BYTES)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        for start in range(0, len(view), _SLICE_BYTES):
            self._digest.update(bytes(view[start : start + _SLICE_BYTES]))

    def checksum(self) -> str:
        """The checksum of all bytes so far."""
        return encode_checksum(self._digest.digest())


def encode_checksum(digest: bytes) -> str:
    """The 32 bytes of a digest in Base58."""
    return base58.b58encode(digest).decode("ascii")


def checksum_of(data: bytes) -> str:
    """The checksum of bytes that are all here."""
    hasher = Hasher()
    hasher.update(data)
    return hasher.checksum()


def is_checksum(text: str) -> bool:
    """Whether a text is 32 bytes in Base58, in the one way of writing them."""
    digest = decode_32_bytes(text)
    return digest is not None and encode_checksum(digest) == text


def decode_32_bytes(text: str) -> bytes | None:
    """What a text in Base58 stands for, a checksum or a key; None unless it is 32 bytes."""
    if not text.isascii() or not text.isalnum() or len(text) > _MAX_TEXT_LENGTH:
        return None
    try:
        decoded = base58.b58decode(text)
    except ValueError:
        return None
    return decoded if len(decoded) == CHECKSUM_BYTES else None
