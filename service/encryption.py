"""Weights as they are published: AES-256-CTR over the whole file, zero IV, no authentication tag.

What it covers: nobody reads the weights without the key before it is revealed. What it does not: a changed
ciphertext decrypts to changed weights; only the checksum, taken over the ciphertext, tells.
Source: the network's own `SomaClient.encrypt_weights`.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import base58
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_ZERO_IV = bytes(16)
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Commitment:
    """What a commit on the network says of a weights file."""

    checksum: str
    """Blake2b-256 of the bytes as published, Base58."""
    size: int
    """Bytes as published."""


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def encrypt_file(
    source: Path, target: Path, key: bytes, on_bytes: Callable[[int], None] | None = None
) -> Commitment:
    """Write the ciphertext of `source` to `target`, which must not exist; memory stays flat.

    `on_bytes` is told how many bytes are done. Raises OSError; nothing is left at `target` then.
    """
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(_ZERO_IV)).encryptor()
    digest, size = blake2b(digest_size=32), 0
    with source.open("rb") as plain, target.open("xb") as cipher:
        try:
            while chunk := plain.read(_CHUNK_BYTES):
                encrypted = encryptor.update(chunk)
                digest.update(encrypted)
                cipher.write(encrypted)
                size += len(encrypted)
                if on_bytes is not None:
                    on_bytes(size)
            cipher.flush()
            os.fsync(cipher.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return Commitment(base58.b58encode(digest.digest()).decode(), size)


def commitment_of(path: Path) -> Commitment:
    """Checksum and size of a file as it lies there."""
    digest, size = blake2b(digest_size=32), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return Commitment(base58.b58encode(digest.digest()).decode(), size)
