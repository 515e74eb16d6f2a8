"""Seconds of work on a device: a GPU's work is over when it says so, not when Python goes on."""

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds_of(device: str, work: Callable[[], object], inner: int = 1) -> float:
    """Of one call, which is repeated `inner` times without waiting in between."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(inner):
        work()
    synchronize(device)
    return (time.perf_counter() - began) / inner


def median_seconds(device: str, work: Callable[[], object], rounds: int = 5, inner: int = 1) -> float:
    """The median of so many rounds, after a first one that does not count."""
    work()
    return statistics.median(seconds_of(device, work, inner) for _ in range(rounds))


def turns(device: str, works: list[Callable[[], object]], rounds: int = 5) -> list[list[float]]:
    """Seconds of each work in each round; within a round they take turns, so that a change of clocks meets all."""
    for work in works:
        work()
    found: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for seconds, work in zip(found, works, strict=True):
            seconds.append(seconds_of(device, work))
    return found
