"""A device whose memory runs out on demand, and an architecture on it that computes nothing."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from workers.architectures import Architecture
from workers.types import BatchScore
from workers.v1 import errors as v1_errors


@dataclass
class Device:
    """What the fake architecture meets: how much fits, and what was asked of it."""

    max_models: int = 100
    max_micro_batch: int = 100
    num_models: int = 0
    loaded: list[str] = field(default_factory=list)
    error: Exception | None = None
    at_gate: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    asked_for_size: Callable[[], object] = lambda: None


@dataclass(eq=False)
class Model:
    """Takes its place on the device until it is dropped."""

    device: Device
    resident_bytes: int = 100

    def __post_init__(self) -> None:
        self.device.num_models += 1

    def __del__(self) -> None:
        self.device.num_models -= 1


class SelfTest:
    """Passed where there is room for one model more."""

    def __init__(self, device: Device, *_: object, small_model: bool) -> None:
        self._device = device

    def run(self, *, with_large: bool) -> None:
        """The numbers are right, if there are any."""
        if self._device.error is not None:
            raise self._device.error
        if self._device.num_models >= self._device.max_models:
            raise torch.OutOfMemoryError("CUDA out of memory")


class ModelRunner:
    """A batch's cross-entropy is the micro-batch size it was evaluated with."""

    def __init__(self, device: Device, *_: object, micro_batch_size: int | None = None) -> None:
        self._device = device
        self.micro_batch_size = micro_batch_size or 16

    @property
    def resident_bytes(self) -> int:
        """Of any model."""
        self._device.asked_for_size()
        return 100

    def load(self, path: str, key: bytes | None, check_cancelled: Callable[[], None]) -> Model:
        """Takes no time, but for weights that are named "gated"."""
        device, name = self._device, Path(path).name
        if name == "gated":
            device.at_gate = True
            while not device.gate.wait(0.01):
                check_cancelled()
        if device.error is not None:
            raise device.error
        device.loaded.append(name)
        if device.num_models == device.max_models:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Model(device)

    def eval_batches(
        self,
        model: Model,
        data: bytes,
        seed: int,
        batches: range,
        check_cancelled: Callable[[], None],
        *,
        detail: bool,
        on_fraction: Callable[[float], None],
    ) -> Iterator[BatchScore]:
        """Every batch but the first may need too much memory."""
        for index in batches:
            check_cancelled()
            if index >= 1 and self.micro_batch_size > self._device.max_micro_batch:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield BatchScore(index, float(self.micro_batch_size), 0.0, np.zeros(1, np.float32), False)


def fake_architecture(device: Device) -> Architecture:
    """An architecture of this device; it computes nothing."""
    fake = SimpleNamespace(
        ArchitectureConfig=lambda: SimpleNamespace(
            is_small=False,
            runner=lambda device_name, precision, micro_batch_size=None: ModelRunner(
                device, micro_batch_size=micro_batch_size
            ),
        ),
        SelfTest=partial(SelfTest, device),
        EvaluationRefused=v1_errors.EvaluationRefused,
        DecryptionFailed=v1_errors.DecryptionFailed,
        WeightsInvalid=v1_errors.WeightsInvalid,
        EmptyData=v1_errors.EmptyData,
        NonFiniteResult=v1_errors.NonFiniteResult,
    )
    return cast(Architecture, fake)
