"""Which devices there are, and each worker's share of the machine, found without importing torch."""

import contextlib
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workers.errors import NoWorker, PrecisionNeedsGpu
from workers.processes.isolated_python import python_command, python_environment
from workers.types import Precision, WorkerConfig

logger = logging.getLogger(__name__)

CPU_MEMORY_SHARE = 0.5
"""Of the memory that is free at the start, what all CPU workers' resident weights may take together."""

_KILL_SECONDS = 1.0
"""How long to wait for a killed process: one that hangs in a driver never ends."""


def resolve_devices(names: Sequence[str]) -> list[str]:
    """Torch devices, one worker each: "auto" is every GPU or else one CPU worker, "cuda" every GPU.

    Raises NoWorker when a GPU is asked for and there is none, and what `count_gpus` raises.
    """
    devices: list[str] = []
    for name in names:
        if name == "cpu" or ":" in name:
            devices.append(name)
        else:
            gpus = [f"cuda:{index}" for index in range(count_gpus())]
            if name == "cuda" and not gpus:
                raise NoWorker("device cuda was asked for, and torch sees no GPU")
            devices += gpus or ["cpu"]
    return devices


def check_precision(precision: Precision, devices: Sequence[str]) -> None:
    """Raises PrecisionNeedsGpu, before any worker is started, where one on a CPU could not compute in it."""
    if precision != "float32" and "cpu" in devices:
        raise PrecisionNeedsGpu(
            f"precision {precision} needs a GPU, and a worker would run on the CPU: leave out --precision"
        )


def count_gpus(timeout_seconds: float = 120.0, device_files: Path = Path("/dev")) -> int:
    """GPUs that torch can use. Asks torch, in a process of its own, only where there is a driver's device file.

    Raises NoWorker when there is no answer in time, or no process can be started.
    """
    if not any(device_files.glob("nvidia[0-9]*")) and not (device_files / "dxg").exists():
        return 0
    question = "import torch; print(torch.cuda.device_count())"
    try:
        process = subprocess.Popen(
            python_command("-c", question),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=python_environment(),
            cwd="/",
            text=True,
        )
    except OSError as error:
        raise NoWorker(f"torch could not be asked for GPUs: {error.strerror}") from None
    answer = _answer_within(process, timeout_seconds)
    if answer is None:
        raise NoWorker(
            f"torch did not say within {timeout_seconds:g} s how many GPUs there are: their driver may hang; "
            "device cpu asks no driver"
        )
    num_gpus = int(answer) if answer.strip().isdecimal() else 0
    if num_gpus == 0:
        logger.warning("there is a GPU driver, but torch can use no GPU")
    return num_gpus


def _answer_within(process: "subprocess.Popen[str]", timeout_seconds: float) -> str | None:
    """What the process prints; None when it must be killed, perhaps in vain."""
    try:
        return process.communicate(timeout=timeout_seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_KILL_SECONDS)
        return None


def share_machine(config: WorkerConfig, devices: Sequence[str]) -> list[WorkerConfig]:
    """One config per worker: those on one device have equal parts of the memory that `config` gives it.

    What is not given is divided too: all CPU threads, and of the CPU's free memory a share. Of a GPU's each of its
    workers takes its part.
    """
    num_threads = config.num_threads or max(1, count_cores() // len(devices))
    configs = []
    for device in devices:
        num_on_device = list(devices).count(device)
        budget = config.memory_budget_bytes
        if budget is None and device == "cpu":
            budget = int(free_memory_bytes() * CPU_MEMORY_SHARE)
        configs.append(
            replace(
                config,
                device=device,
                num_threads=num_threads,
                num_on_device=num_on_device,
                memory_budget_bytes=None if budget is None else max(1, budget // num_on_device),
            )
        )
    return configs


def count_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # "200000 100000", or "max 100000"
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, int(quota[0]) // int(quota[1]))
    return max(1, cores)


def free_memory_bytes() -> int:
    """Memory that may still be taken: the machine's, or what the container has left if that is less."""
    available = [
        int(line.split()[1]) * 1024
        for line in _read("/proc/meminfo").splitlines()
        if line.startswith("MemAvailable:")
    ] or [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        available.append(max(0, int(limit) - int(used)))
    return min(available)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
