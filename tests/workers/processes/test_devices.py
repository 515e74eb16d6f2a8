"""Which devices a pool gets, and what each worker's share of the machine is."""

from pathlib import Path

import pytest
import torch

from workers.errors import NoWorker
from workers.processes import devices
from workers.processes.devices import resolve_devices, share_machine
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


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A folder of device files with one of a GPU's driver."""
    folder = tmp_path / "dev"
    folder.mkdir()
    (folder / "nvidia0").touch()
    return folder


@pytest.fixture
def another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is the module torch of the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "torch.py"


@pytest.mark.slow
def test_torch_of_the_current_folder_is_not_asked(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("open('was-imported', 'w')")
    assert devices.count_gpus(device_files=driver) == torch.cuda.device_count()
    assert not (tmp_path / "was-imported").exists()


def test_a_driver_that_hangs(driver: Path, another_torch: Path) -> None:
    another_torch.write_text("import time; time.sleep(3600)")
    with pytest.raises(NoWorker, match=r"within 0\.5 s"):
        devices.count_gpus(timeout_seconds=0.5, device_files=driver)


@pytest.mark.parametrize("torch_does", ["raise ImportError", "print('hello')", "import os; os.abort()"])
def test_a_torch_that_cannot_say(torch_does: str, driver: Path, another_torch: Path) -> None:
    another_torch.write_text(torch_does)
    assert devices.count_gpus(device_files=driver) == 0


def test_no_process_to_ask_in(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/not/there")
    with pytest.raises(NoWorker, match="could not be asked"):
        devices.count_gpus(device_files=driver)


def test_without_a_driver_torch_is_not_asked(tmp_path: Path, another_torch: Path) -> None:
    another_torch.write_text("print(7)")
    assert devices.count_gpus(device_files=tmp_path / "dev") == 0


def test_the_machine_is_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_cores", lambda: 7)
    monkeypatch.setattr(devices, "free_memory_bytes", lambda: 1200)
    configs = share_machine(WorkerConfig(""), ["cpu", "cpu", "cuda:0"])
    assert [config.device for config in configs] == ["cpu", "cpu", "cuda:0"]
    assert [config.num_threads for config in configs] == [2, 2, 2]
    assert [config.memory_budget_bytes for config in configs] == [300, 300, None]


def test_the_memory_of_one_device_is_shared_by_its_workers() -> None:
    given = WorkerConfig("", num_threads=1, memory_budget_bytes=600)
    configs = share_machine(given, ["cuda:0", "cuda:1", "cuda:0", "cpu"])
    assert [(each.num_on_device, each.memory_budget_bytes) for each in configs] == [
        (2, 300),
        (1, 600),
        (2, 300),
        (1, 600),
    ]


def test_more_workers_than_cores_have_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_cores", lambda: 1)
    assert [config.num_threads for config in share_machine(WorkerConfig(""), ["cpu"] * 2)] == [1, 1]


def test_what_is_given_stays() -> None:
    given = WorkerConfig("", num_threads=5, memory_budget_bytes=6)
    assert share_machine(given, ["cpu"]) == [WorkerConfig("cpu", num_threads=5, memory_budget_bytes=6)]
    assert devices.count_cores() >= 1
    assert devices.free_memory_bytes() > 0
