"""What is asked of the service: submissions to open targets, each evaluated by the models of its target."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.network_day.service_times import DAY_SECONDS, MIB, WEIGHTS_BYTES

KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Workload:
    """A day of the network, or a part of it."""

    submissions_per_second: float = 1.0
    """On average; they come independently of each other."""
    seconds: float = DAY_SECONDS
    """For how long they come; 0 for all of `num_submissions` at once."""
    num_submissions: int | None = None
    """None: as many as come in that time."""
    least_data_bytes: int = 10_000
    most_data_bytes: int = 10_000
    """Between the two each order of magnitude is as frequent as another."""
    num_targets: int = 100
    models_per_target: int = 3
    num_models: int = 300
    """Different ones, of which each target has its own; fewer than targets times models are shared."""
    weights_bytes: int = WEIGHTS_BYTES
    epoch_seconds: float = DAY_SECONDS
    """After which all models have new weights."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Submission:
    """One request."""

    number: int
    at: float
    """Seconds since the start."""
    data_bytes: int
    weights: tuple[str, ...]
    """Checksums, one for each model."""


def submissions(load: Workload) -> Iterator[Submission]:
    """In the order in which they come; the same for the same workload."""
    generator = random.Random(load.seed)
    at, number = 0.0, 0
    while load.num_submissions is None or number < load.num_submissions:
        if load.seconds:
            at += generator.expovariate(load.submissions_per_second)
            if at >= load.seconds:
                return
        target = generator.randrange(load.num_targets)
        epoch = int(at // load.epoch_seconds)
        first = target * load.models_per_target
        weights = tuple(
            weights_name((first + i) % load.num_models, epoch) for i in range(load.models_per_target)
        )
        yield Submission(number, at, _data_bytes(generator, load), weights)
        number += 1


def weights_name(model: int, epoch: int) -> str:
    """In place of a checksum."""
    return f"model-{model}-of-epoch-{epoch}"


def _data_bytes(generator: random.Random, load: Workload) -> int:
    low, high = math.log(load.least_data_bytes), math.log(load.most_data_bytes)
    return round(math.exp(generator.uniform(low, high)))


SMALL, LARGE = (10_000, 10_000), (MIB, MIB)
MIXED = (KIB, MIB)
"""Least and most bytes of data. The mean of the last is 148 KiB."""
