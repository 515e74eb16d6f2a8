"""The bytes of a weights file as published, read and decrypted in pieces. Needs no torch.

The cipher is the network's: AES-256-CTR with a 128-bit big-endian counter from zero, over the whole file, without
a tag. It can begin anywhere, so several threads may decrypt, a piece each.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

Weights = str | os.PathLike[str] | bytes
"""A file by its path, or the bytes of one."""

PIECE_BYTES = 2 << 20
"""What a thread reads and decrypts at once: small enough to stay in its core's cache between the two."""

KEY_BYTES = 32
AES_BLOCK_BYTES = 16


class Source(Protocol):
    """The bytes of a weights file as published."""

    size: int

    def read(self, offset: int, size: int) -> memoryview:
        """At most PIECE_BYTES; they may change with the next read of the same thread."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from this offset on."""


class FileSource:
    """An open file, read by each thread into a buffer of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._of_thread = threading.local()

    def read(self, offset: int, size: int) -> memoryview:
        if not hasattr(self._of_thread, "buffer"):
            self._of_thread.buffer = memoryview(bytearray(PIECE_BYTES))
        buffer: memoryview = self._of_thread.buffer[:size]
        self.read_into(offset, buffer)
        return buffer

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The system copies, and other threads of Python run meanwhile."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            if not count:
                raise OSError("the weights file became shorter while it was read")
            done += count


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.size = len(data)

    def read(self, offset: int, size: int) -> memoryview:
        return self.data[offset : offset + size]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


def check_key(key: object) -> None:
    """Raises TypeError or ValueError, which say what is wanted, for what can be no decryption key."""
    if isinstance(key, str):
        raise TypeError(
            f"a decryption key is {KEY_BYTES} bytes, not text: base58.b58decode makes them of Base58"
        )
    if not isinstance(key, bytes | None):
        raise TypeError(f"a decryption key is {KEY_BYTES} bytes, not {type(key).__name__}")
    if key is not None and len(key) != KEY_BYTES:
        raise ValueError(f"a decryption key is {KEY_BYTES} bytes, not {len(key)}")


@contextmanager
def open_source(weights: Weights) -> Iterator[Source]:
    """The bytes of a file, or those given. Raises OSError."""
    if isinstance(weights, bytes):
        yield BytesSource(weights)
        return
    descriptor = os.open(weights, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield FileSource(descriptor)
    finally:
        os.close(descriptor)


def read_clear(source: Source, offset: int, size: int, key: bytes | None) -> bytearray:
    """That many bytes from this offset on, decrypted if there is a key."""
    clear = bytearray(size + AES_BLOCK_BYTES)
    with memoryview(clear) as buffer:
        read_clear_into(source, offset, size, key, buffer)
    del clear[size:]
    return clear


def read_clear_into(source: Source, offset: int, size: int, key: bytes | None, buffer: memoryview) -> None:
    """Fill the first `size` bytes of `buffer`, which is one block larger: `update_into` asks for that much space,
    though a stream cipher leaves it as it is."""
    if key is None:
        source.read_into(offset, buffer[:size])
        return
    decryptor = decryptor_at(key, offset)
    for start in range(0, size, PIECE_BYTES):
        end = min(start + PIECE_BYTES, size)
        piece = source.read(offset + start, end - start)
        decryptor.update_into(piece, buffer[start : end + AES_BLOCK_BYTES])


def decryptor_at(key: bytes, offset: int) -> CipherContext:
    """A decryptor for the bytes of a file from this offset on."""
    first_block, within = divmod(offset, AES_BLOCK_BYTES)
    counter = first_block.to_bytes(AES_BLOCK_BYTES, "big")
    decryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).decryptor()
    decryptor.update(bytes(within))
    return decryptor
