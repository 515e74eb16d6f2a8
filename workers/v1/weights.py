"""Loading weights: the header is judged first, then each tensor is brought to where it stays.

- A plain float32 tensor of a file is mapped, not copied.
- Encrypted weights are decrypted on the way, straight into the tensors: the plaintext never touches a disk
  and is in memory once. AES-256-CTR is seekable, so several threads do it, a piece each.
- Other dtypes are converted to float32, one tensor at a time.

The cipher is the network's: 128-bit big-endian counter from zero, over the whole file, without a tag.
"""

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from .config import ModelConfig
from .weights_header import TensorPlace, expected_shapes, read_header

Weights = str | os.PathLike[str] | bytes
"""A file by its path, or the bytes of one."""

PIECE_BYTES = 8 << 20
"""What a thread reads and decrypts at once."""

NUM_THREADS = min(8, os.cpu_count() or 1)

AES_BLOCK_BYTES = 16

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Source(Protocol):
    """The bytes of a weights file as published."""

    size: int

    def read(self, offset: int, size: int) -> bytes | memoryview: ...


class FileSource:
    """An open file; reads need no lock."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0:
            piece = os.pread(self.descriptor, size, offset)
            if not piece:
                raise OSError("the weights file became shorter while it was read")
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.size = len(data)

    def read(self, offset: int, size: int) -> memoryview:
        return self.data[offset : offset + size]


def load_tensors(
    weights: Weights,
    config: ModelConfig,
    decryption_key: bytes | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The tensors a model of this shape needs, float32, on the device. The key is 32 bytes.

    On a CPU, tensors of a plain file are mapped: the file must not change while they live, and writing to
    them does not reach it.

    Raises WeightsInvalid or DecryptionFailed, judging by the header alone, and OSError of the file.
    """
    device = torch.device(device)
    with _open(weights) as source:
        header = read_header(
            lambda offset, size: _read_clear(source, offset, size, decryption_key),
            source.size,
            config,
            encrypted=decryption_key is not None,
        )
        places = {name: header.tensors[name] for name in expected_shapes(config)}
        mapped = _map(source) if decryption_key is None else None

        def load(place: TensorPlace) -> Tensor:
            tensor = _mapped_tensor(mapped, place)
            if tensor is None:
                tensor = _read_tensor(source, place, decryption_key)
            return tensor.to(device)

        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="load-weights") as threads:
            return dict(zip(places, threads.map(load, places.values()), strict=True))


def decryptor_at(key: bytes, offset: int) -> CipherContext:
    """A decryptor for the bytes of a file from this offset on. Raises ValueError for a key of another length."""
    if len(key) != 32:
        raise ValueError(f"a decryption key has 32 bytes, not {len(key)}")
    first_block, within = divmod(offset, AES_BLOCK_BYTES)
    counter = first_block.to_bytes(AES_BLOCK_BYTES, "big")
    decryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).decryptor()
    decryptor.update(bytes(within))
    return decryptor


@contextmanager
def _open(weights: Weights) -> Iterator[Source]:
    if isinstance(weights, bytes):
        yield BytesSource(weights)
        return
    descriptor = os.open(weights, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield FileSource(descriptor)
    finally:
        os.close(descriptor)


def _map(source: Source) -> mmap.mmap | None:
    """The whole file as memory, copied on write so that torch may believe it can write."""
    if not isinstance(source, FileSource):
        return None
    return mmap.mmap(source.descriptor, source.size, access=mmap.ACCESS_COPY)


def _mapped_tensor(mapped: mmap.mmap | None, place: TensorPlace) -> Tensor | None:
    """A view of the file, or None where it takes a copy: another dtype, or not at a multiple of 4 bytes."""
    if mapped is None or place.dtype != "F32" or place.begin % 4:
        return None
    num_elements = (place.end - place.begin) // 4
    flat = torch.frombuffer(mapped, dtype=torch.float32, count=num_elements, offset=place.begin)
    return flat.view(place.shape)


def _read_tensor(source: Source, place: TensorPlace, key: bytes | None) -> Tensor:
    """A tensor read into memory of its own, decrypted if there is a key, as float32."""
    size = place.end - place.begin
    # update_into asks for room for one more block, though a stream cipher never fills it.
    room = torch.empty(size + AES_BLOCK_BYTES, dtype=torch.uint8)
    _read_clear_into(source, place.begin, size, key, room.numpy().data)
    raw = room[:size]
    if place.dtype == "BOOL":
        return raw.view(place.shape).ne(0).float()
    return raw.view(_TORCH_DTYPES[place.dtype]).view(place.shape).float()


def _read_clear(source: Source, offset: int, size: int, key: bytes | None) -> bytes:
    room = bytearray(size + AES_BLOCK_BYTES)
    _read_clear_into(source, offset, size, key, memoryview(room))
    return bytes(memoryview(room)[:size])


def _read_clear_into(source: Source, offset: int, size: int, key: bytes | None, room: memoryview) -> None:
    """Fill the first `size` bytes of `room`, which has one block more."""
    decryptor = None if key is None else decryptor_at(key, offset)
    for start in range(0, size, PIECE_BYTES):
        end = min(start + PIECE_BYTES, size)
        piece = source.read(offset + start, end - start)
        if decryptor is None:
            room[start:end] = piece
        else:
            decryptor.update_into(piece, room[start : end + AES_BLOCK_BYTES])
