"""Loading weights: the header is validated first, then each tensor is brought to where it stays.

- A plain float32 tensor of a file is mapped, not copied. Pages not in memory yet are asked for ahead of use.
- Encrypted weights are decrypted on the way, straight into the tensors: the plaintext never touches a disk
  and is in memory once. Several threads do it, a piece each.
- What goes to a GPU passes through pinned buffers: while one is copied over, the next is read or decrypted.
- Other dtypes are converted to float32, one tensor at a time.
"""

import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .cancellation import CancelCheck, never_cancelled
from .config import ModelConfig
from .header_entries import TensorInfo
from .weights_header import expected_shapes, read_header
from .weights_memory import DeviceMemory, HostMemory
from .weights_source import (
    AES_BLOCK_BYTES,
    FileSource,
    Source,
    Weights,
    check_key,
    open_source,
    read_clear,
    read_clear_into,
)

MOST_CPU_THREADS = 8
MOST_GPU_THREADS = 16
"""That load. To a GPU they fill pinned memory, which more of them do faster: see `weights_memory.STAGE_BYTES`."""

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
    check_cancelled: CancelCheck = never_cancelled,
) -> dict[str, Tensor]:
    """The tensors a model of this shape needs, float32, on the device. The key is 32 bytes.

    `check_cancelled` is called before every few MiB, from this thread, and may raise to stop.

    On a CPU, tensors of a plain file are mapped: the file must not change while they live, and writing to
    them does not reach it.

    Raises WeightsInvalid or DecryptionFailed, by the header alone, OSError of the file, and ValueError or
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
        infos = {name: header.tensors[name] for name in expected_shapes(config)}
        tensors: dict[str, Tensor] = {}
        if isinstance(source, FileSource) and decryption_key is None and device.type == "cpu":
            tensors = _mapped_tensors(source, infos)
            _read_ahead(source, [infos[name] for name in tensors])
        others = {name: info for name, info in infos.items() if name not in tensors}
        tensors |= _read_tensors(source, others, decryption_key, device, check_cancelled)
    return {name: tensors[name] for name in infos}


def _mapped_tensors(source: FileSource, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Views of the file, of those tensors that need no copy: float32, at a multiple of 4 bytes."""
    # Copied on write, so that torch may believe it can write.
    mapped = mmap.mmap(source.descriptor, source.size, access=mmap.ACCESS_COPY)
    return {
        name: torch.frombuffer(
            mapped, dtype=torch.float32, count=(info.end - info.begin) // 4, offset=info.begin
        ).view(info.shape)
        for name, info in infos.items()
        if info.dtype == "F32" and info.begin % 4 == 0
    }


def _read_ahead(source: FileSource, infos: Sequence[TensorInfo]) -> None:
    """Have the system read a mapped file in the order of its use, beside the compute of the first layers."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.dup(source.descriptor)

    def ask() -> None:
        try:
            for info in infos:
                os.posix_fadvise(descriptor, info.begin, info.end - info.begin, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    threading.Thread(target=ask, name="read-ahead", daemon=True).start()


def _read_tensors(
    source: Source,
    infos: Mapping[str, TensorInfo],
    key: bytes | None,
    device: torch.device,
    check_cancelled: CancelCheck,
) -> dict[str, Tensor]:
    """Tensors read into memory of their own, decrypted if there is a key, as float32."""
    ready = {name: info for name, info in infos.items() if info.dtype == "F32"}
    shapes = {name: info.shape for name, info in ready.items()}
    memory = HostMemory(shapes) if device.type == "cpu" else DeviceMemory(shapes, device)
    pieces = [
        Piece(name, start, min(start + memory.piece_bytes, info.end - info.begin))
        for name, info in ready.items()
        for start in range(0, info.end - info.begin, memory.piece_bytes)
    ]

    def bring(piece: Piece) -> None:
        offset = infos[piece.name].begin + piece.start
        with memory.buffer(piece.name, piece.start, piece.end) as buffer:
            read_clear_into(source, offset, piece.end - piece.start, key, buffer)

    def convert(name: str) -> tuple[str, Tensor]:
        return name, _converted_tensor(source, infos[name], key).to(device)

    converted = {}
    try:
        with _threads(device) as threads:
            for _ in threads.map(bring, pieces):
                check_cancelled()
            for name, tensor in threads.map(convert, [name for name in infos if name not in ready]):
                converted[name] = tensor
                check_cancelled()
    finally:
        memory.settle()
    return memory.tensors() | converted


@contextmanager
def _threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that load; an error ends what they have not begun."""
    begin, most = None, MOST_CPU_THREADS
    if device.type == "cuda":
        # Else a thread is on the first GPU, and its pinned memory opens a context there.
        begin, most = partial(torch.cuda.set_device, _own_index(device)), MOST_GPU_THREADS
    threads = ThreadPoolExecutor(
        min(most, _num_cores()), thread_name_prefix="load-weights", initializer=begin
    )
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_index(device: torch.device) -> int:
    """Of a GPU; of one without a number, that of the calling thread's."""
    return torch.cuda.current_device() if device.index is None else device.index


def _converted_tensor(source: Source, info: TensorInfo, key: bytes | None) -> Tensor:
    """A tensor of another dtype, as float32."""
    size = info.end - info.begin
    buffer = torch.empty(size + AES_BLOCK_BYTES, dtype=torch.uint8)
    read_clear_into(source, info.begin, size, key, buffer.numpy().data)
    raw = buffer[:size]
    if info.dtype == "BOOL":
        return raw.view(info.shape).ne(0).float()
    return raw.view(_TORCH_DTYPES[info.dtype]).view(info.shape).float()
