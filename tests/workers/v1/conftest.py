"""Threads of torch that wait for one another should sleep: spinning ones starve each other on a busy machine."""

import os
from collections.abc import Callable, Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
