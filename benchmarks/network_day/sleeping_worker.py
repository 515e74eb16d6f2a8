"""A worker process whose model computes nothing and takes a known time, so that nodes share no cores in it.

All else is the real worker: messages, heartbeats, loading, loading ahead, what stays resident.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np

from workers.architectures import Architecture, config_of, load_architecture
from workers.types import BatchScore, CancelCheck, OnFraction, WorkerConfig
from workers.worker.main import main
from workers.worker.runner import Runner

SECONDS_PER_SEQUENCE = 0.02
SECONDS_PER_LOAD = 0.6
_NAP_SECONDS = 0.05
"""Between two looks at whether the task is still wanted."""
_EMBEDDING = np.ones(2048, dtype=np.float32)
"""As long as one of V1."""


@dataclass(frozen=True, slots=True)
class SleepingModel:
    """Weights that nobody looks into."""

    resident_bytes: int


class SleepingModelRunner:
    """In place of `workers.v1.ModelRunner`."""

    micro_batch_size = 16
    resident_bytes = 56_576
    """As many as the file of the network's small model has."""

    def load(self, path: str, decryption_key: bytes | None, check_cancelled: CancelCheck) -> SleepingModel:
        """Takes SECONDS_PER_LOAD."""
        _sleep(SECONDS_PER_LOAD, check_cancelled)
        return SleepingModel(self.resident_bytes)

    def eval_batches(
        self,
        model: SleepingModel,
        data: bytes,
        seed: int,
        which: Sequence[int],
        check_cancelled: CancelCheck,
        *,
        detail: bool,
        on_fraction: OnFraction,
    ) -> Iterator[BatchScore]:
        """Takes SECONDS_PER_SEQUENCE for each sequence."""
        config = config_of(load_architecture("1"))
        for index in which:
            batch = data[index * config.batch_bytes : (index + 1) * config.batch_bytes]
            _sleep(config.num_sequences(len(batch)) * SECONDS_PER_SEQUENCE, check_cancelled)
            yield BatchScore(index, 1.0, 1.0, _EMBEDDING, False)


class _SleepingConfig:
    """In place of `workers.v1.ArchitectureConfig`."""

    is_small = True

    @classmethod
    def small(cls) -> "_SleepingConfig":
        return cls()

    def runner(self, *arguments: object) -> SleepingModelRunner:
        return SleepingModelRunner()


class SleepingRunner(Runner):
    """The real runner, with that in place of the model."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config, _architecture)


@dataclass(frozen=True, slots=True)
class SleepingConfig:
    """In place of `workers.v1.ArchitectureConfig`."""

    is_small: bool = True

    @classmethod
    def small(cls) -> "SleepingConfig":
        """The only one."""
        return cls()

    def runner(self, *arguments: object) -> SleepingModelRunner:
        """What loads and evaluates."""
        return SleepingModelRunner()


def _architecture(version: str) -> Architecture:
    v1 = load_architecture(version)
    own = {"ArchitectureConfig": SleepingConfig, "SelfTest": _passes}
    errors = ("EvaluationRefused", "DecryptionFailed", "WeightsInvalid", "EmptyData", "NonFiniteResult")
    return cast(Architecture, SimpleNamespace(**own, **{name: getattr(v1, name) for name in errors}))


def _passes(*arguments: object, **options: object) -> SimpleNamespace:
    return SimpleNamespace(run=lambda with_large: None)


def _sleep(seconds: float, check_cancelled: CancelCheck) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_cancelled()
        time.sleep(min(left, _NAP_SECONDS))


if __name__ == "__main__":
    main(SleepingRunner)
