"""Loading weights: the header is judged first, then each tensor is brought to where it stays.

- A plain float32 tensor of a file is mapped, not copied. Pages not in memory yet are asked for ahead of use.
- Encrypted weights are decrypted on the way, straight into the tensors: the plaintext never touches a disk
  and is in memory once. Several threads do it, a piece each.
- What goes to a GPU passes through pinned buffers: while one is copied over, the next is read or decrypted.
- Other dtypes are converted to float32, one tensor at a time.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .config import ModelConfig
from .header_entries import TensorInfo
from .weights_header import expected_shapes, read_header
from .weights_memory import DeviceMemory, HostMemory
from .weights_source import (
    AES_BLOCK_BYTES,
    PIECE_BYTES,
    FileSource,
    Source,
    Weights,
    check_key,
    open_source,
    read_clear,
    read_clear_into,
)

NUM_THREADS = min(
    8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)

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


class Piece(NamedTuple):
    """A part of a tensor, for one thread to bring: bytes start to end, counted within the tensor."""

    name: str
    start: int
    end: int


def load_tensors(
    weights: Weights,
    config: ModelConfig,
    decryption_key: bytes | None = None,
    device: torch.device | str = "cpu",
    check_cancelled: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """The tensors a model of this shape needs, float32, on the device. The key is 32 bytes.

    `check_cancelled` is called before every few MiB, from this thread: what it raises ends the loading there.

    On a CPU, tensors of a plain file are mapped: the file must not change while they live, and writing to
    them does not reach it.

    Raises WeightsInvalid or DecryptionFailed, judging by the header alone, OSError of the file, and ValueError or
    TypeError for what can be no key.
    """
    check_key(decryption_key)
    device = torch.device(device)
    check_cancelled()
    with open_source(weights) as source:
        header = read_header(
            lambda offset, size: read_clear(source, offset, size, decryption_key),
            source.size,
            config,
            encrypted=decryption_key is not None,
            check_cancelled=check_cancelled,
        )
        places = {name: header.tensors[name] for name in expected_shapes(config)}
        tensors: dict[str, Tensor] = {}
        if isinstance(source, FileSource) and decryption_key is None and device.type == "cpu":
            tensors = _mapped_tensors(source, places)
            _read_ahead(source, [places[name] for name in tensors])
        others = {name: place for name, place in places.items() if name not in tensors}
        tensors |= _read_tensors(source, others, decryption_key, device, check_cancelled)
    return {name: tensors[name] for name in places}


def _mapped_tensors(source: FileSource, places: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Views of the file, of those tensors that need no copy: float32, at a multiple of 4 bytes."""
    # Copied on write, so that torch may believe it can write.
    mapped = mmap.mmap(source.descriptor, source.size, access=mmap.ACCESS_COPY)
    return {
        name: torch.frombuffer(
            mapped, dtype=torch.float32, count=(place.end - place.begin) // 4, offset=place.begin
        ).view(place.shape)
        for name, place in places.items()
        if place.dtype == "F32" and place.begin % 4 == 0
    }


def _read_ahead(source: FileSource, places: Sequence[TensorInfo]) -> None:
    """Have the system read a mapped file in the order of its use, beside the compute of the first layers."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.dup(source.descriptor)

    def ask() -> None:
        try:
            for place in places:
                os.posix_fadvise(descriptor, place.begin, place.end - place.begin, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    threading.Thread(target=ask, name="read-ahead", daemon=True).start()


def _read_tensors(
    source: Source,
    places: Mapping[str, TensorInfo],
    key: bytes | None,
    device: torch.device,
    check_cancelled: Callable[[], None],
) -> dict[str, Tensor]:
    """Tensors read into memory of their own, decrypted if there is a key, as float32."""
    ready = {name: place for name, place in places.items() if place.dtype == "F32"}
    shapes = {name: place.shape for name, place in ready.items()}
    memory = HostMemory(shapes) if device.type == "cpu" else DeviceMemory(shapes, device)
    pieces = [
        Piece(name, start, min(start + PIECE_BYTES, place.end - place.begin))
        for name, place in ready.items()
        for start in range(0, place.end - place.begin, PIECE_BYTES)
    ]

    def bring(piece: Piece) -> None:
        offset = places[piece.name].begin + piece.start
        with memory.room(piece.name, piece.start, piece.end) as room:
            read_clear_into(source, offset, piece.end - piece.start, key, room)

    def convert(name: str) -> tuple[str, Tensor]:
        return name, _converted_tensor(source, places[name], key).to(device)

    converted = {}
    with _threads() as threads:
        for _ in threads.map(bring, pieces):
            check_cancelled()
        for name, tensor in threads.map(convert, [name for name in places if name not in ready]):
            converted[name] = tensor
            check_cancelled()
    return memory.finished() | converted


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that load; an error ends what they have not begun."""
    threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="load-weights")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _converted_tensor(source: Source, place: TensorInfo, key: bytes | None) -> Tensor:
    """A tensor of another dtype, as float32."""
    size = place.end - place.begin
    room = torch.empty(size + AES_BLOCK_BYTES, dtype=torch.uint8)
    read_clear_into(source, place.begin, size, key, room.numpy().data)
    raw = room[:size]
    if place.dtype == "BOOL":
        return raw.view(place.shape).ne(0).float()
    return raw.view(_TORCH_DTYPES[place.dtype]).view(place.shape).float()
