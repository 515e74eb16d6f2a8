"""The memory of tensors, filled a piece at a time by several threads."""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .weights_source import PIECE_BYTES

SPARE_BYTES = 16
"""Behind every buffer: a block of the cipher, which asks for the space and leaves it as it is."""

ALIGNMENT = 64
"""Of a tensor on a CPU: a line of its cache."""

STAGE_BYTES = 16 << 20
"""What a thread brings to a GPU at once. With an H200 and 16 cores 4.84 GB took 0.17 s so, by 16 threads; in pieces of
2 MiB, by 8 threads, 0.55 s."""


class HostMemory:
    """float32 tensors side by side in one block. numpy asks for huge pages, which torch does not by itself."""

    piece_bytes = PIECE_BYTES
    """The most that one buffer is for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)
        self._begins: dict[str, int] = {}
        size = 0
        for name, shape in shapes.items():
            self._begins[name] = size
            size += -(-4 * math.prod(shape) // ALIGNMENT) * ALIGNMENT
        block = np.empty(size + SPARE_BYTES + ALIGNMENT, dtype=np.uint8)
        self._block = block[-block.ctypes.data % ALIGNMENT :]

    @contextmanager
    def buffer(self, name: str, start: int, end: int) -> Iterator[memoryview]:
        """A buffer for these bytes of the tensor, and for SPARE_BYTES that must stay as they are."""
        begin = self._begins[name]
        yield self._block.data[begin + start : begin + end + SPARE_BYTES]

    def settle(self) -> None:
        """Nothing is on its way here."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, once every byte has been filled in."""
        block = torch.from_numpy(self._block)
        return {
            name: block[begin : begin + 4 * math.prod(shape)].view(torch.float32).view(shape)
            for (name, begin), shape in zip(self._begins.items(), self._shapes.values(), strict=True)
        }


class DeviceMemory:
    """float32 tensors on a GPU. Each thread has two pinned buffers: it fills one while the other is copied."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        self._device = device
        self._tensors = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
        self.piece_bytes = min(
            STAGE_BYTES, max((tensor.nbytes for tensor in self._tensors.values()), default=0)
        )
        """The most that one buffer is for."""
        self._of_thread = threading.local()
        self._stages: list[_Stage] = []

    @contextmanager
    def buffer(self, name: str, start: int, end: int) -> Iterator[memoryview]:
        """A buffer for these bytes of the tensor, and SPARE_BYTES more; after the block they are copied over."""
        stage = self._stage()
        buffer = stage.free_buffer()
        yield buffer.numpy().data
        stage.send(buffer[: end - start], self._tensors[name].view(-1).view(torch.uint8)[start:end])

    def settle(self) -> None:
        """Wait for every copy that was begun, when no thread begins another.

        Needed after an error too: what frees a tensor gives its memory to the evaluation that runs beside, and a copy
        on a stream of ours would still write there.
        """
        for stage in self._stages:
            stage.wait()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, once every byte has been filled in and has arrived."""
        return self._tensors

    def _stage(self) -> "_Stage":
        if not hasattr(self._of_thread, "stage"):
            self._of_thread.stage = _Stage(self._device, self.piece_bytes)
            self._stages.append(self._of_thread.stage)
        stage: _Stage = self._of_thread.stage
        return stage


class _Stage:
    """Two pinned buffers, used alternately, and a stream of copies. Off a GPU the copies are plain ones."""

    def __init__(self, device: torch.device, piece_bytes: int) -> None:
        is_cuda = device.type == "cuda"
        self._buffers = [
            torch.empty(piece_bytes + SPARE_BYTES, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(2)
        ]
        self._next = 0
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        if self._stream is not None:  # what the memory was used for before comes first
            self._stream.wait_stream(torch.cuda.default_stream(device))
        self._copied: list[torch.cuda.Event | None] = [None, None]

    def free_buffer(self) -> Tensor:
        """The buffer that is next, once its last copy is done."""
        self._next = 1 - self._next
        copied = self._copied[self._next]
        if copied is not None:
            copied.synchronize()
        return self._buffers[self._next]

    def send(self, filled: Tensor, target: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(filled, non_blocking=True)
        if self._stream is not None:
            self._copied[self._next] = self._stream.record_event()

    def wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
