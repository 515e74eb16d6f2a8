"""What the tests of version 1 share."""

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
