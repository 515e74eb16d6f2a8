"""Weights as they are published: AES-256-CTR over the whole file, zero IV, no authentication tag.

What it covers: nobody reads the weights without the key before it is revealed. What it does not: a changed
ciphertext decrypts to changed weights, and only the checksum, taken over the ciphertext, tells; and two files
under one key give each other away, so a key is for one file.
Source: the network's own `SomaClient.encrypt_weights`.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from service.checksum import Hasher

KEY_BYTES = 32
_ZERO_IV = bytes(16)
_CHUNK_BYTES = 8 << 20

OnBytes = Callable[[int], None]
"""Told how many bytes are done."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """What a commit on the network says of a weights file."""

    checksum: str
    """Blake2b-256 of the bytes as published, Base58."""
    size: int
    """Bytes as published."""


@dataclass(frozen=True, slots=True)
class Encrypted(Commitment):
    """A commitment, and what was encrypted."""

    plain_checksum: str
    """Blake2b-256 of the bytes before encryption, Base58."""


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


class Encrypting:
    """The ciphertext of a file, chunk by chunk, hashed on the way; memory stays flat. To be iterated over once."""

    def __init__(self, source: Path, key: bytes, chunk_bytes: int | None = None) -> None:
        self._source = source
        self._encryptor = _cipher(key).encryptor()
        self._chunk_bytes = chunk_bytes or _CHUNK_BYTES
        self._result: Encrypted | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Each chunk but the last has `chunk_bytes`. Raises OSError."""
        with self._source.open("rb") as plain, _Hashing() as before, _Hashing() as after:
            while chunk := plain.read(self._chunk_bytes):
                before.add(chunk)
                encrypted = self._encryptor.update(chunk)
                after.add(encrypted)
                yield encrypted
            commitment, plain_checksum = after.commitment(), before.commitment().checksum
        self._result = Encrypted(commitment.checksum, commitment.size, plain_checksum)

    @property
    def result(self) -> Encrypted:
        """What was encrypted, after the last chunk."""
        assert self._result is not None
        return self._result


def encrypt_file(source: Path, target: Path, key: bytes, on_bytes: OnBytes | None = None) -> Encrypted:
    """Write the ciphertext of `source` to `target`, which must not exist; memory stays flat.

    Raises OSError; nothing is left at `target` then, unless it was there before.
    """
    encrypting = Encrypting(source, key)
    with target.open("xb") as cipher:
        try:
            for chunk in encrypting:
                cipher.write(chunk)
                if on_bytes is not None:
                    on_bytes(cipher.tell())
            cipher.flush()
            os.fsync(cipher.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return encrypting.result


def commitment_of(path: Path, on_bytes: OnBytes | None = None) -> Commitment:
    """Checksum and size of a file as it lies there. Raises OSError."""
    return _commitment_of(path, lambda chunk: chunk, on_bytes)


def commitment_of_plain(path: Path, key: bytes) -> Commitment:
    """Checksum and size of the file that `path` is the ciphertext of. Raises OSError."""
    return _commitment_of(path, _cipher(key).decryptor().update, None)


def decrypt_start(ciphertext: bytes, key: bytes) -> bytes:
    """The first bytes of a file, out of the first bytes of its ciphertext."""
    return _cipher(key).decryptor().update(ciphertext)


def _cipher(key: bytes) -> Cipher[modes.CTR]:
    return Cipher(algorithms.AES256(key), modes.CTR(_ZERO_IV))


def _commitment_of(path: Path, change: Callable[[bytes], bytes], on_bytes: OnBytes | None) -> Commitment:
    with path.open("rb") as file, _Hashing() as hashing:
        for chunk in _chunks(file):
            hashing.add(change(chunk))
            if on_bytes is not None:
                on_bytes(hashing.size)
        return hashing.commitment()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


class _Hashing:
    """Hashes one chunk in a thread of its own while the caller makes the next; never more than two wait."""

    def __init__(self) -> None:
        self.size = 0
        self._hasher = Hasher()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def __enter__(self) -> "_Hashing":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, chunk: bytes) -> None:
        self._wait()
        self._last = self._thread.submit(self._hasher.update, chunk)
        self.size += len(chunk)

    def commitment(self) -> Commitment:
        self._wait()
        return Commitment(self._hasher.checksum(), self.size)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
