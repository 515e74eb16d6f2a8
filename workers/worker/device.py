"""The device that a worker computes on: its name, its memory, and what its library says when that runs out."""

import contextlib
import errno
import os
import platform
from pathlib import Path

import torch
import torch.utils.deterministic

from workers.types import WorkerConfig

MEMORY_SHARE = 0.6
"""Of the device memory that is free at the start, what resident weights of all its workers may take; the rest is to
evaluate in."""

MACHINE_ERRORS = (RuntimeError, MemoryError, OSError)
"""What torch, Python and the system raise when memory, threads or descriptors run out."""

OUT_OF_MEMORY_SIGNS = (
    "out of memory",  # CUDA's own functions, such as for pinned memory
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER
    "_ALLOCATION_FAILED",  # cuDNN 9
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # no memory for its handle
    "can't start new thread",
)
"""What a RuntimeError says that means so."""


class Device:
    """One GPU, or the CPU. All sizes are bytes."""

    def __init__(self, config: WorkerConfig) -> None:
        """Sets up the whole process for it. TF32 follows the precision, and is each architecture's to set."""
        self._name = config.device
        self._is_gpu = config.device.startswith("cuda")
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.choose()
        # As use_deterministic_algorithms(True, warn_only=True), which imports the compiler too: half of a start.
        torch.set_deterministic_debug_mode("warn")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.total_bytes = self._free_and_total_bytes()[1]
        """All the memory that it has."""
        # Kept open: when it is needed there may be no descriptor left.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)

    def choose(self) -> None:
        """Have the calling thread work on it; every thread begins on the first GPU."""
        if self._is_gpu:
            torch.cuda.set_device(self._name)

    @property
    def full_name(self) -> str:
        """What the vendor calls it; of a CPU also what else decides its bits."""
        if self._is_gpu:
            return torch.cuda.get_device_name(self._name)
        num_threads = torch.get_num_threads()
        threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
        return f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}, {threads}"

    def used_bytes(self) -> int:
        """What this process takes of its memory. Asks torch or the kernel, and never a GPU's driver."""
        if self._is_gpu:
            return torch.cuda.memory_reserved(self._name)
        _total_pages, resident_pages, *_rest = os.pread(self._statm, 200, 0).split()
        return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")

    def weights_budget_bytes(self, num_workers: int) -> int:
        """What resident weights of one of its workers may take, by default.

        A worker that starts while others are there shares what they have left.
        """
        free, _total = self._free_and_total_bytes()
        return int(free * MEMORY_SHARE / num_workers)

    def give_back_memory(self) -> None:
        """Return to it what torch holds and no tensor uses."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _free_and_total_bytes(self) -> tuple[int, int]:
        if self._is_gpu:
            return torch.cuda.mem_get_info(self._name)
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")


def cpu_model(cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """What the vendor calls the CPU, with family and model where a hypervisor hides the name."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in cpu_info.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), " ".join(value.split()))
    name = facts.get("model name") or facts.get("CPU part") or platform.machine()
    numbers = "/".join(facts[key] for key in ("cpu family", "model") if key in facts)
    return f"{name} ({numbers})" if numbers else name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine has no memory or threads left; after any other error CUDA is unusable."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)
