"""Where tensors come to lie: filled by many threads, in pieces, on the host and (its code, off a GPU) a device."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from workers.v1.weights_memory import ALIGNMENT, SPARE_BYTES, DeviceMemory, HostMemory

SHAPES = {"matrix": (100, 7), "scalar": (), "vector": (1023,), "odd": (3, 1)}
EXPECTED = {
    name: torch.arange(torch.Size(shape).numel()).float().view(shape) for name, shape in SHAPES.items()
}

MEMORIES = [
    pytest.param(lambda: HostMemory(SHAPES), id="host"),
    pytest.param(lambda: DeviceMemory(SHAPES, torch.device("cpu")), id="device"),
    pytest.param(
        lambda: DeviceMemory(SHAPES, torch.device("cuda")),
        id="cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.mark.parametrize("make", MEMORIES)
@pytest.mark.parametrize("piece_bytes", [1, 64, 100_000])
def test_pieces_of_many_threads_end_up_in_their_tensors(
    make: Callable[[], HostMemory | DeviceMemory], piece_bytes: int
) -> None:
    memory = make()
    pieces = [
        (name, start, min(start + piece_bytes, tensor.nbytes))
        for name, tensor in EXPECTED.items()
        for start in range(0, tensor.nbytes, piece_bytes)
    ]

    def fill(piece: tuple[str, int, int]) -> None:
        name, start, end = piece
        with memory.buffer(name, start, end) as room:
            assert len(room) >= end - start + SPARE_BYTES
            room[: end - start] = EXPECTED[name].numpy().tobytes()[start:end]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fill, pieces))
    memory.settle()
    found = memory.tensors()
    assert found.keys() == EXPECTED.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.cpu(), EXPECTED[name], rtol=0, atol=0)


def test_tensors_of_the_host_lie_at_lines_of_the_cache_in_one_block() -> None:
    tensors = HostMemory(SHAPES).tensors()
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1
