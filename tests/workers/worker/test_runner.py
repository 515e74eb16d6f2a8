"""What happens inside a worker, with an architecture whose memory runs out on demand."""

import errno
import os
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.workers.processes.pools import until
from workers.architectures import Architecture
from workers.errors import FileUnreadable, OutOfMemory
from workers.types import BatchScore, EvalJob, WorkerConfig
from workers.v1 import errors as v1_errors
from workers.worker.runner import Runner, cpu_model


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


@dataclass(eq=False)
class Model:
    """Takes its place on the device until it is dropped."""

    device: Device
    resident_bytes: int = 100

    def __post_init__(self) -> None:
        self.device.num_models += 1

    def __del__(self) -> None:
        self.device.num_models -= 1


def fake_architecture(device: Device) -> Architecture:
    class ModelRunner:
        def __init__(self, *_: object, micro_batch_size: int | None = None) -> None:
            self.micro_batch_size = micro_batch_size or 16

        def load(self, path: str, key: bytes | None, check_cancelled: Callable[[], None]) -> Model:
            name = Path(path).name
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
            for index in batches:
                check_cancelled()
                if index >= 1 and self.micro_batch_size > device.max_micro_batch:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield BatchScore(index, float(self.micro_batch_size), 0.0, np.zeros(1, np.float32), False)

    fake = SimpleNamespace(
        ArchitectureConfig=lambda: SimpleNamespace(
            is_small=False,
            runner=lambda device, precision, micro_batch_size=None: ModelRunner(
                None, device, precision, micro_batch_size=micro_batch_size
            ),
        ),
        SelfTest=lambda device, precision, small_model: None,
        EvaluationRefused=v1_errors.EvaluationRefused,
        DecryptionFailed=v1_errors.DecryptionFailed,
        WeightsInvalid=v1_errors.WeightsInvalid,
        EmptyData=v1_errors.EmptyData,
        NonFiniteResult=v1_errors.NonFiniteResult,
    )
    return cast(Architecture, fake)


@pytest.fixture
def device() -> Device:
    """What the runner computes on."""
    return Device()


def runner_on(device: Device, memory_budget_bytes: int) -> Runner:
    """A runner that evaluates every job with a fake architecture; a model takes 100 bytes."""
    config = WorkerConfig("cpu", memory_budget_bytes=memory_budget_bytes)
    return Runner(config, lambda version: fake_architecture(device))


@pytest.fixture
def runner(device: Device) -> Runner:
    """Has a budget for two models beside each other."""
    return runner_on(device, memory_budget_bytes=200)


def wait_for_prefetch() -> None:
    """Wait until no thread loads ahead any more."""
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join()


def job(folder: Path, name: str) -> EvalJob:
    (folder / name).write_bytes(bytes(100))
    return EvalJob(str(folder / name), name, str(folder / name), 100, seed=0)


def never_cancelled() -> None:
    """The cancel check of work that nobody stops."""


def names(runner: Runner) -> set[str]:
    return {checksum for _, checksum, _ in runner.resident()}


def evaluate(runner: Runner, job: EvalJob, num_batches: int = 3) -> list[int]:
    """The micro-batch size each batch was evaluated with, which the fake reports as its cross-entropy."""
    return [int(score.cross_entropy) for score in runner.evaluate(job, range(num_batches), never_cancelled)]


def test_weights_stay_within_the_budget(runner: Runner, tmp_path: Path) -> None:
    a, b, c = (job(tmp_path, name) for name in "abc")
    assert runner.load(a, never_cancelled) > 0
    assert runner.load(a, never_cancelled) == 0.0
    runner.load(b, never_cancelled)
    runner.load(a, never_cancelled)
    runner.load(c, never_cancelled)
    assert names(runner) == {"a", "c"}  # b was not used for longest


def test_memory_is_what_the_process_and_its_weights_take(device: Device, tmp_path: Path) -> None:
    runner = runner_on(device, 250)
    runner.load(job(tmp_path, "a"), never_cancelled)
    runner.load(job(tmp_path, "b"), never_cancelled)
    memory = runner.memory()
    assert (memory.weights, memory.weights_limit) == (200, 250)
    assert memory.total > memory.used > 10_000_000


def test_one_model_has_its_place_whatever_the_budget(device: Device, tmp_path: Path) -> None:
    runner = runner_on(device, memory_budget_bytes=1)
    for name in "ab":
        runner.load(job(tmp_path, name), never_cancelled)
        assert names(runner) == {name}
    assert device.num_models == 1


def test_no_memory_to_load_drops_the_others_and_tries_once_more(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    device.max_models = 1
    runner.load(job(tmp_path, "a"), never_cancelled)
    runner.load(job(tmp_path, "b"), never_cancelled)
    assert names(runner) == {"b"}


def test_no_memory_to_load_even_with_nothing_else_there(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    device.max_models = 0
    with pytest.raises(OutOfMemory):
        runner.load(job(tmp_path, "a"), never_cancelled)
    device.max_models = 1
    runner.load(job(tmp_path, "a"), never_cancelled)


def test_no_memory_to_evaluate_drops_the_others_and_cuts_smaller(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    a, b = job(tmp_path, "a"), job(tmp_path, "b")
    runner.load(a, never_cancelled)
    runner.load(b, never_cancelled)
    device.max_micro_batch = 4
    scores = list(runner.evaluate(b, range(3), never_cancelled))
    assert [(int(s.cross_entropy), s.was_cut_smaller) for s in scores] == [(16, False), (4, True), (4, True)]
    assert names(runner) == {"b"}


def test_a_cpu_is_named_by_what_decides_its_bits(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("cpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A  CPU\n\ncpu family\t: 7\n")
    assert cpu_model(info) == "A CPU (6/143)"
    info.write_text("CPU part\t: 0xd4f\n")
    assert cpu_model(info) == "0xd4f"
    assert cpu_model(tmp_path / "none") == platform.machine()


def test_no_memory_to_evaluate_even_then(runner: Runner, device: Device, tmp_path: Path) -> None:
    a = job(tmp_path, "a")
    runner.load(a, never_cancelled)
    device.max_micro_batch = 1
    with pytest.raises(OutOfMemory):
        evaluate(runner, a)
    device.max_micro_batch = 16
    assert evaluate(runner, a) == [16, 16, 16]


def test_any_other_error_of_the_device_is_not_swallowed(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = job(tmp_path, "a")
    runner.load(a, never_cancelled)

    def faults() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(runner.evaluate(a, range(1), faults))


def test_a_cancel_check_that_raises_ends_the_work(runner: Runner, tmp_path: Path) -> None:
    a = job(tmp_path, "a")
    runner.load(a, never_cancelled)
    calls: list[int] = []

    def stop_at_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise TimeoutError

    scores: list[Any] = []
    with pytest.raises(TimeoutError):
        scores += list(runner.evaluate(a, range(100), stop_at_second))
    assert len(calls) == 2


def test_prefetch_loads_in_the_background(runner: Runner, device: Device, tmp_path: Path) -> None:
    runner.load(job(tmp_path, "a"), never_cancelled)
    runner.prefetch(job(tmp_path, "b"))
    wait_for_prefetch()
    assert names(runner) == {"a", "b"}
    assert runner.load(job(tmp_path, "b"), never_cancelled) == 0.0


def test_prefetch_waits_for_nobody_and_is_waited_for(runner: Runner, device: Device, tmp_path: Path) -> None:
    gated = job(tmp_path, "gated")
    runner.prefetch(gated)
    threading.Timer(0.1, device.gate.set).start()
    assert runner.load(gated, never_cancelled) > 0  # the rest of the time it takes, and not twice
    assert device.loaded == ["gated"]


def test_prefetch_never_drops_what_is_in_use(device: Device, tmp_path: Path) -> None:
    runner = runner_on(device, memory_budget_bytes=150)
    runner.load(job(tmp_path, "a"), never_cancelled)
    runner.prefetch(job(tmp_path, "b"))
    wait_for_prefetch()
    assert names(runner) == {"a"}
    assert device.loaded == ["a"]


def test_prefetch_never_drops_what_a_load_chose_meanwhile(
    runner: Runner, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (job(tmp_path, name) for name in "abc")
    runner.load(a, never_cancelled)
    runner.load(b, never_cancelled)

    def size_while_a_is_chosen(path: str) -> int:
        assert runner.load(a, never_cancelled) == 0.0
        return 100

    monkeypatch.setattr("os.path.getsize", size_while_a_is_chosen)
    runner.prefetch(c)
    wait_for_prefetch()
    assert names(runner) == {"a", "c"}
    assert evaluate(runner, a) == [16, 16, 16]


async def test_a_load_does_not_wait_for_the_prefetch_of_other_weights(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    gated, other = job(tmp_path, "gated"), job(tmp_path, "other")
    runner.prefetch(gated)
    await until(lambda: device.at_gate)
    calls: list[int] = []
    threading.Timer(0.2, device.gate.set).start()
    runner.load(other, lambda: calls.append(1))
    assert device.loaded == ["other"]  # the prefetch gave up at its next check_cancelled
    assert names(runner) == {"other"}
    wait_for_prefetch()


async def test_a_load_that_waits_for_a_prefetch_can_be_cancelled(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    gated = job(tmp_path, "gated")
    runner.prefetch(gated)
    await until(lambda: device.at_gate)

    def cancel() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        runner.load(gated, cancel)
    device.gate.set()
    wait_for_prefetch()
    assert names(runner) == {"gated"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_the_machine_lacks_is_not_held_against_the_weights(
    runner: Runner, device: Device, tmp_path: Path, error: Exception
) -> None:
    a = job(tmp_path, "a")
    device.error = error
    with pytest.raises(OutOfMemory):
        runner.load(a, never_cancelled)
    device.error = None
    runner.load(a, never_cancelled)

    def lacks() -> None:
        raise error

    with pytest.raises(OutOfMemory):
        list(runner.evaluate(a, range(1), lacks))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_is_not_held_against_the_weights(
    runner: Runner, device: Device, tmp_path: Path, code: int
) -> None:
    device.error = OSError(code, os.strerror(code))
    with pytest.raises(FileUnreadable, match="the weights could not be read"):
        runner.load(job(tmp_path, "a"), never_cancelled)


def test_a_file_that_lost_bytes_is_not_held_against_the_weights(runner: Runner, tmp_path: Path) -> None:
    whole = job(tmp_path, "a")
    runner.load(whole, never_cancelled)
    with pytest.raises(FileUnreadable, match="the weights could not be read: 100 bytes in place of 104"):
        runner.load(replace(whole, weights_checksum="b", weights_size=104), never_cancelled)
    runner.load(whole, never_cancelled)
    with pytest.raises(FileUnreadable, match="the data could not be read: 100 bytes in place of 101"):
        list(runner.evaluate(replace(whole, data_size=101), range(1), never_cancelled))


def test_an_error_of_a_prefetch_is_raised_by_the_load(runner: Runner, device: Device, tmp_path: Path) -> None:
    device.max_models = 0
    runner.prefetch(job(tmp_path, "a"))
    wait_for_prefetch()
    assert device.loaded == ["a"]
    with pytest.raises(OutOfMemory):
        runner.load(job(tmp_path, "a"), never_cancelled)
