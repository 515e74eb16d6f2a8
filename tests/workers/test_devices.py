"""Which devices a pool gets, and what each worker's share of the machine is."""

import pytest

from workers import devices
from workers.devices import resolve_devices, share_machine
from workers.errors import NoWorker
from workers.types import WorkerConfig


@pytest.mark.parametrize(
    ("asked", "num_gpus", "expected"),
    [
        (["auto"], 0, ["cpu"]),
        (["auto"], 2, ["cuda:0", "cuda:1"]),
        (["cuda"], 2, ["cuda:0", "cuda:1"]),
        (["cpu", "cpu"], 2, ["cpu", "cpu"]),
        (["cuda:1", "cpu"], 2, ["cuda:1", "cpu"]),
    ],
)
def test_devices(
    asked: list[str], num_gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda: num_gpus)
    assert resolve_devices(asked) == expected


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda: 0)
    with pytest.raises(NoWorker, match="sees no GPU"):
        resolve_devices(["cuda"])


def test_the_machine_is_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_cores", lambda: 7)
    monkeypatch.setattr(devices, "free_memory_bytes", lambda: 1200)
    configs = share_machine(WorkerConfig(""), ["cpu", "cpu", "cuda:0"])
    assert [config.device for config in configs] == ["cpu", "cpu", "cuda:0"]
    assert [config.num_threads for config in configs] == [2, 2, 2]
    assert [config.memory_budget_bytes for config in configs] == [300, 300, None]


def test_more_workers_than_cores_have_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_cores", lambda: 1)
    assert [config.num_threads for config in share_machine(WorkerConfig(""), ["cpu"] * 2)] == [1, 1]


def test_what_is_given_stays() -> None:
    given = WorkerConfig("", num_threads=5, memory_budget_bytes=6)
    assert share_machine(given, ["cpu"]) == [WorkerConfig("cpu", num_threads=5, memory_budget_bytes=6)]
    assert devices.count_cores() >= 1
    assert devices.free_memory_bytes() > 0
