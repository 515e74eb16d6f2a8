"""What happens inside a worker, with an architecture whose memory runs out on demand."""

import errno
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.processes.pools import until
from tests.workers.worker.fake_device import Device, fake_architecture
from workers.errors import FileUnreadable, OutOfMemory
from workers.types import EvalJob, WorkerConfig
from workers.worker.device import cpu_model
from workers.worker.runner import Runner


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


def load(runner: Runner, job: EvalJob, check_cancelled: Callable[[], None] = never_cancelled) -> float:
    """Its weights, reserved and loaded, as a worker does before it evaluates."""
    runner.reserve(job)
    return runner.load(job, check_cancelled)


def use(runner: Runner, job: EvalJob) -> float:
    """The same for a job that ends at once."""
    try:
        return load(runner, job)
    finally:
        runner.release(job)


def names(runner: Runner) -> set[str]:
    return {checksum for _, checksum, _ in runner.resident()}


def evaluate(runner: Runner, job: EvalJob, num_batches: int = 3) -> list[int]:
    """The micro-batch size each batch was evaluated with, which the fake reports as its cross-entropy."""
    return [int(score.cross_entropy) for score in runner.evaluate(job, range(num_batches), never_cancelled)]


def test_weights_stay_within_the_budget(runner: Runner, tmp_path: Path) -> None:
    a, b, c = (job(tmp_path, name) for name in "abc")
    assert use(runner, a) > 0
    assert use(runner, a) == 0.0
    use(runner, b)
    use(runner, a)
    use(runner, c)
    assert names(runner) == {"a", "c"}  # b was not used for longest


def test_memory_is_what_the_process_and_its_weights_take(device: Device, tmp_path: Path) -> None:
    runner = runner_on(device, 250)
    use(runner, job(tmp_path, "a"))
    use(runner, job(tmp_path, "b"))
    memory = runner.memory()
    assert (memory.weights, memory.weights_limit) == (200, 250)
    assert memory.total > memory.used > 10_000_000


@pytest.mark.parametrize(
    ("num_on_device", "free_bytes", "limit"), [(1, 10_000, 6_000), (2, 10_000, 3_000), (2, 7_000, 2_100)]
)
def test_workers_on_one_card_share_what_is_free(
    device: Device, monkeypatch: pytest.MonkeyPatch, num_on_device: int, free_bytes: int, limit: int
) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 12_000))
    config = WorkerConfig("cuda:0", num_on_device=num_on_device)
    memory = Runner(config, lambda version: fake_architecture(device)).memory()
    assert (memory.total, memory.weights_limit) == (12_000, limit)


def test_a_prefetch_chooses_its_card(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, object]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((threading.current_thread().name, device))
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 12_000))
    runner = Runner(WorkerConfig("cuda:1"), lambda version: fake_architecture(device))
    runner.prefetch(job(tmp_path, "a"))
    wait_for_prefetch()
    assert chosen == [("MainThread", "cuda:1"), ("prefetch", "cuda:1")]
    assert names(runner) == {"a"}


def test_one_model_has_its_place_whatever_the_budget(device: Device, tmp_path: Path) -> None:
    runner = runner_on(device, memory_budget_bytes=1)
    for name in "ab":
        use(runner, job(tmp_path, name))
        assert names(runner) == {name}
    assert device.num_models == 1


def test_no_memory_to_load_drops_the_others_and_tries_once_more(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    device.max_models = 1
    use(runner, job(tmp_path, "a"))
    use(runner, job(tmp_path, "b"))
    assert names(runner) == {"b"}


def test_no_memory_to_load_even_with_nothing_else_there(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    device.max_models = 0
    with pytest.raises(OutOfMemory):
        use(runner, job(tmp_path, "a"))
    device.max_models = 1
    use(runner, job(tmp_path, "a"))


def test_no_memory_to_evaluate_drops_the_others_and_cuts_smaller(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    a, b = job(tmp_path, "a"), job(tmp_path, "b")
    use(runner, a)
    load(runner, b)
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
    load(runner, a)
    device.max_micro_batch = 1
    with pytest.raises(OutOfMemory):
        evaluate(runner, a)
    device.max_micro_batch = 16
    assert evaluate(runner, a) == [16, 16, 16]


def test_no_memory_for_the_data(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = job(tmp_path, "a")
    load(runner, a)

    def no_memory(path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", no_memory)
    with pytest.raises(OutOfMemory, match="for the data"):
        evaluate(runner, a)


def test_no_memory_to_ask_what_weights_take(runner: Runner, device: Device, tmp_path: Path) -> None:
    def no_memory() -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    device.asked_for_size = no_memory
    assert use(runner, job(tmp_path, "a")) > 0
    assert names(runner) == {"a"}


def test_no_memory_for_a_self_test_drops_what_is_not_in_use(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    use(runner, job(tmp_path, "a"))
    load(runner, job(tmp_path, "b"))
    device.max_models = 1  # beside the one in use there is no room to test
    assert runner.self_test(with_large=False) == "there is too little memory for a known evaluation"
    assert names(runner) == {"b"}
    device.max_models = 2
    assert runner.self_test(with_large=False) is None
    use(runner, job(tmp_path, "a"))
    assert runner.self_test(with_large=False) is None
    assert names(runner) == {"b"}


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle, opa, ...)`"
        ),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(handle, opa, ...)`"
        ),
    ],
)
def test_any_other_error_of_the_device_is_not_swallowed(
    runner: Runner, device: Device, tmp_path: Path, error: Exception
) -> None:
    a = job(tmp_path, "a")
    load(runner, a)

    def faults() -> None:
        raise error

    with pytest.raises(type(error)):
        list(runner.evaluate(a, range(1), faults))
    device.error = error
    with pytest.raises(type(error)):
        runner.self_test(with_large=False)


def test_a_cancel_check_that_raises_ends_the_work(runner: Runner, tmp_path: Path) -> None:
    a = job(tmp_path, "a")
    load(runner, a)
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
    load(runner, job(tmp_path, "a"))
    runner.prefetch(job(tmp_path, "b"))
    wait_for_prefetch()
    assert names(runner) == {"a", "b"}
    assert load(runner, job(tmp_path, "b")) == 0.0


def test_prefetch_waits_for_nobody_and_is_waited_for(runner: Runner, device: Device, tmp_path: Path) -> None:
    gated = job(tmp_path, "gated")
    runner.prefetch(gated)
    threading.Timer(0.1, device.gate.set).start()
    assert load(runner, gated) > 0  # the rest of the time it takes, and not twice
    assert device.loaded == ["gated"]


def test_prefetch_never_drops_what_is_in_use(device: Device, tmp_path: Path) -> None:
    runner = runner_on(device, memory_budget_bytes=150)
    load(runner, job(tmp_path, "a"))
    runner.prefetch(job(tmp_path, "b"))
    wait_for_prefetch()
    assert names(runner) == {"a"}
    assert device.loaded == ["a"]


def test_prefetch_never_drops_what_was_reserved_meanwhile(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    a, b, c = (job(tmp_path, name) for name in "abc")
    use(runner, a)
    use(runner, b)
    device.asked_for_size = lambda: runner.reserve(a)
    runner.prefetch(c)
    wait_for_prefetch()
    assert names(runner) == {"a", "c"}
    assert runner.load(a, never_cancelled) == 0.0
    assert evaluate(runner, a) == [16, 16, 16]


def test_prefetch_may_drop_what_is_in_use_no_more(runner: Runner, tmp_path: Path) -> None:
    a, b, c = (job(tmp_path, name) for name in "abc")
    use(runner, a)
    load(runner, b)
    runner.reserve(a)  # the next job, whose weights were used before
    runner.release(b)
    runner.prefetch(c)
    wait_for_prefetch()
    assert runner.load(a, never_cancelled) == 0.0
    assert names(runner) == {"a", "c"}


def test_a_job_that_follows_one_with_the_same_weights_keeps_them(runner: Runner, tmp_path: Path) -> None:
    a, b, c = (job(tmp_path, name) for name in "abc")
    load(runner, a)
    runner.reserve(a)
    runner.release(a)
    for other in (b, c):
        runner.prefetch(other)
        wait_for_prefetch()
    assert names(runner) == {"a", "c"}


async def test_out_of_memory_ends_a_prefetch_before_the_last_try(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    a, gated = job(tmp_path, "a"), job(tmp_path, "gated")
    load(runner, a)
    runner.prefetch(gated)
    await until(lambda: device.at_gate)
    device.max_micro_batch = 4
    assert evaluate(runner, a) == [16, 4, 4]
    wait_for_prefetch()  # ends though its gate is closed
    assert names(runner) == {"a"}


async def test_a_load_does_not_wait_for_the_prefetch_of_other_weights(
    runner: Runner, device: Device, tmp_path: Path
) -> None:
    gated, other = job(tmp_path, "gated"), job(tmp_path, "other")
    runner.prefetch(gated)
    await until(lambda: device.at_gate)
    calls: list[int] = []
    threading.Timer(0.2, device.gate.set).start()
    load(runner, other, lambda: calls.append(1))
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
        load(runner, gated, cancel)
    device.gate.set()
    wait_for_prefetch()
    assert names(runner) == {"gated"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.AcceleratorError("CUDA error: out of memory"),  # pinned memory, a kernel that is loaded late
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSgemm(handle, opa, ...)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
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
        use(runner, a)
    device.error = None
    load(runner, a)

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
        load(runner, job(tmp_path, "a"))


def test_a_file_that_lost_bytes_is_not_held_against_the_weights(runner: Runner, tmp_path: Path) -> None:
    whole = job(tmp_path, "a")
    use(runner, whole)
    with pytest.raises(FileUnreadable, match="the weights could not be read: 100 bytes in place of 104"):
        use(runner, replace(whole, weights_checksum="b", weights_size=104))
    load(runner, whole)
    with pytest.raises(FileUnreadable, match="the data could not be read: 100 bytes in place of 101"):
        list(runner.evaluate(replace(whole, data_size=101), range(1), never_cancelled))


def test_an_error_of_a_prefetch_is_raised_by_the_load(runner: Runner, device: Device, tmp_path: Path) -> None:
    device.max_models = 0
    runner.prefetch(job(tmp_path, "a"))
    wait_for_prefetch()
    assert device.loaded == ["a"]
    with pytest.raises(OutOfMemory):
        load(runner, job(tmp_path, "a"))
