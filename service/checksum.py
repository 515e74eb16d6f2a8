"""The network's checksum: Blake2b-256, written in Base58. Its text is safe as a file name."""

import hashlib

import base58

CHECKSUM_BYTES = 32
_MAX_TEXT_LENGTH = 44  # 58**43 < 2**256 <= 58**44


def new_hasher() -> "hashlib.blake2b":
    """A fresh Blake2b with a digest of 32 bytes; `update` releases the GIL."""
    return hashlib.blake2b(digest_size=CHECKSUM_BYTES)


def encode_checksum(digest: bytes) -> str:
    """The 32 bytes of a digest in Base58."""
    return base58.b58encode(digest).decode("ascii")


def checksum_of(data: bytes) -> str:
    """The checksum of bytes that are all here."""
    return encode_checksum(hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest())


def is_checksum(text: str) -> bool:
    """Whether a text is 32 bytes in Base58, in the one way of writing them."""
    if not text.isascii() or not text.isalnum() or len(text) > _MAX_TEXT_LENGTH:
        return False
    try:
        digest = base58.b58decode(text)
    except ValueError:
        return False
    return len(digest) == CHECKSUM_BYTES and encode_checksum(digest) == text
