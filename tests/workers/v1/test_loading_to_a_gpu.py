"""Loading to a GPU, as far as it needs none: the card's memory is the CPU's, and pinned buffers are plain ones."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.odd_weights_files import whole
from tests.recipe import TEST_KEY, encrypt
from workers.v1 import ModelConfig, weights, weights_memory
from workers.v1.cancellation import never_cancelled
from workers.v1.weights import load_tensors


@dataclass
class Card:
    """What was asked of it, in order."""

    of_thread: dict[str, int] = field(default_factory=dict)
    """The GPU that each thread has chosen."""
    used_without_choice: list[str] = field(default_factory=list)
    """Threads that asked for pinned memory before they had chosen one."""
    buffers: list[Tensor] = field(default_factory=list)
    events: list[tuple[str, int]] = field(default_factory=list)
    """A copy to the card was begun, or waited for; with the stage's number."""

    def set_device(self, index: int) -> None:
        """In place of torch.cuda.set_device."""
        self.of_thread[threading.current_thread().name] = index

    def is_in_a_buffer(self, address: int) -> bool:
        """Whether it lies in a pinned buffer."""
        return any(each.data_ptr() <= address < each.data_ptr() + each.nbytes for each in self.buffers)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Stands in for every GPU."""
    card = Card()

    class Stage(weights_memory._Stage):
        def __init__(self, device: torch.device, piece_bytes: int) -> None:
            super().__init__(device, piece_bytes)
            self._number = len(card.buffers)
            card.buffers += self._buffers
            if (name := threading.current_thread().name) not in card.of_thread:
                card.used_without_choice.append(name)

        def send(self, filled: Tensor, target: Tensor) -> None:
            card.events.append(("sent", self._number))
            super().send(filled, target)

        def wait(self) -> None:
            card.events.append(("waited", self._number))
            super().wait()

    def on_the_cpu(shapes: Mapping[str, tuple[int, ...]], _: torch.device) -> weights_memory.DeviceMemory:
        return weights_memory.DeviceMemory(shapes, torch.device("cpu"))

    monkeypatch.setattr(weights_memory, "_Stage", Stage)
    monkeypatch.setattr(weights, "DeviceMemory", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "set_device", card.set_device)
    return card


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file of small weights."""
    path = tmp_path / "plain"
    path.write_bytes(whole())
    return path


def to_card(
    path: Path, key: bytes | None = None, device: str = "cuda:1", check: Callable[[], None] = never_cancelled
) -> dict[str, Tensor]:
    return load_tensors(path, ModelConfig.small(), key, device, check)


def test_the_tensors_are_those_of_a_cpu(card: Card, plain: Path, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted"
    encrypted.write_bytes(encrypt(plain.read_bytes()))
    expected = load_tensors(plain, ModelConfig.small())
    for found in (to_card(plain), to_card(encrypted, TEST_KEY)):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda", 3)])
def test_every_thread_works_on_the_card_that_is_loaded_to(
    card: Card, plain: Path, monkeypatch: pytest.MonkeyPatch, device: str, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)  # of the thread that asks for the load
    to_card(plain, device=device)
    assert card.used_without_choice == []
    assert set(card.of_thread.values()) == {index}


def test_plain_tensors_are_read_straight_into_pinned_buffers(
    card: Card, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the system copies, without the interpreter's lock; every other byte of the file is its header."""
    sizes = {True: 0, False: 0}
    preadv = os.preadv

    def noting_preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        address = np.frombuffer(buffers[0], np.uint8).ctypes.data
        sizes[card.is_in_a_buffer(address)] += count
        return count

    monkeypatch.setattr(os, "preadv", noting_preadv)
    tensors = to_card(plain)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert sizes == {True: num_bytes, False: plain.stat().st_size - num_bytes}


def test_a_load_that_fails_waits_for_its_copies(
    card: Card, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def failing_preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if sum(event == "sent" for event, _ in card.events) >= 8:
            raise OSError("the disk is gone")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing_preadv)
    with pytest.raises(OSError, match="the disk is gone"):
        to_card(plain)
    assert_all_were_waited_for(card)


def test_so_does_one_that_is_cancelled(card: Card, plain: Path) -> None:
    def check() -> None:
        if card.events:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        to_card(plain, check=check)
    assert_all_were_waited_for(card)


def assert_all_were_waited_for(card: Card) -> None:
    """Each stage of copies, after the last copy was begun."""
    kinds = [event for event, _ in card.events]
    first_wait = kinds.index("waited")
    assert "sent" not in kinds[first_wait:]
    assert {stage for event, stage in card.events if event == "sent"} <= {
        stage for event, stage in card.events if event == "waited"
    }
