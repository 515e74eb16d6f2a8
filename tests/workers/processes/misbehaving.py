"""A worker whose weights decide how it misbehaves. Real process, real signals; only the numbers are made up.

Started by a pool as its entry module. `weights_checksum` names the misbehaviour; `weights_path` is a
folder where one may leave a mark for the next worker to find. Without torch, such a worker starts at once.
"""

import ctypes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from workers.errors import OutOfMemory, WeightsInvalid
from workers.types import BatchScore, EvalJob, WeightsId, WorkerConfig, WorkerMemory
from workers.worker.main import main

BATCH_SECONDS = 0.02


class MisbehavingRunner:
    """Computes nothing; a batch's cross-entropy is its index plus the seed."""

    def __init__(self, config: WorkerConfig) -> None:
        self._device = config.device
        self.device_name = config.device.removesuffix(":0").removesuffix(":1")
        self.memory_bytes = config.memory_budget_bytes or 1
        self._resident: set[WeightsId] = set()
        self._is_loading = False
        self.versions = {
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "settings": ",".join(name for name in os.environ if name.startswith("SOMA_EVAL_")),
            "dumpable": str(_dumpable()),
        }

    def self_test(self, *, with_large: bool) -> str | None:
        """Right, unless the device name says otherwise: "wrong", or a path: wrong if that file exists.

        "wrong-large" is wrong in the large evaluation alone.
        """
        kind, _, mark = self.device_name.partition(":")
        is_wrong = kind == "wrong" or (kind == "wrong-large" and with_large)
        return "loss 1 instead of 2" if is_wrong and (not mark or Path(mark).exists()) else None

    def resident(self) -> frozenset[WeightsId]:
        """Everything that was ever loaded."""
        return frozenset(self._resident)

    def memory(self) -> WorkerMemory:
        """One byte for each of them."""
        return WorkerMemory(total=100, used=10, weights=len(self._resident), weights_limit=50)

    def reserve(self, job: EvalJob) -> None:
        """Nothing here is evicted."""

    def release(self, job: EvalJob) -> None:
        """The same."""

    def load(self, job: EvalJob, check_cancelled: Callable[[], None]) -> float:
        """Takes no time, unless that is the misbehaviour."""
        if job.weights_id in self._resident:
            return 0.0
        started = time.perf_counter()
        self._is_loading = True
        _BEFORE_LOAD.get(job.weights_checksum, _do_nothing)(job)
        self._is_loading = False
        self._resident.add(job.weights_id)
        return time.perf_counter() - started

    def prefetch(self, job: EvalJob) -> None:
        """Takes no time; refused while other weights load."""
        _BEFORE_PREFETCH.get(job.weights_checksum, _do_nothing)(job)
        if not self._is_loading:
            self._resident.add(job.weights_id)

    def evaluate(
        self,
        job: EvalJob,
        batches: range,
        check_cancelled: Callable[[], None],
        on_fraction: Callable[[float], None],
    ) -> Iterator[BatchScore]:
        """One score per batch, after a moment; the misbehaviour happens before the third."""
        for index in batches:
            check_cancelled()
            if index >= 2:
                _BEFORE_THIRD_BATCH.get(job.weights_checksum, _do_nothing)(job)
                self._fail_if_sick(job)
            if job.weights_checksum == "slow":
                _take_long(check_cancelled)
            if job.weights_checksum == "says-how-far-it-is":
                _advance_slowly(on_fraction)
            time.sleep(BATCH_SECONDS)
            loss = float("nan") if job.weights_checksum.startswith("nan") else float(index + job.seed)
            if job.weights_checksum == "nan-of-a-spoiled-device":
                (Path(job.weights_path).parent / "spoiled").touch()
            yield BatchScore(index, loss, 1.0, np.full(4, index, dtype=np.float32), False)

    def _fail_if_sick(self, job: EvalJob) -> None:
        """What a device does that fails in every larger evaluation, as long as the job's folder names it."""
        if (Path(job.weights_path).parent / f"{self._device} is sick").exists():
            raise RuntimeError("CUDA error: unspecified launch failure")


def _do_nothing(job: EvalJob) -> None:
    pass


def _dumpable() -> int:
    return int(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE


def _take_long(check_cancelled: Callable[[], None]) -> None:
    for _ in range(6):
        time.sleep(0.1)
        check_cancelled()


def _advance_slowly(on_fraction: Callable[[float], None]) -> None:
    for step in range(20):
        time.sleep(0.1)
        on_fraction(step / 20)


def _first_time(job: EvalJob) -> bool:
    try:
        (Path(job.weights_path) / "mark").touch(exist_ok=False)  # of two workers at once, one is the first
    except FileExistsError:
        return False
    return True


def _segfault(job: EvalJob) -> None:
    ctypes.string_at(0)


def _segfault_once(job: EvalJob) -> None:
    if _first_time(job):
        ctypes.string_at(0)


def _segfault_and_spoil_the_device(job: EvalJob) -> None:
    (Path(job.weights_path).parent / "spoiled").touch()
    ctypes.string_at(0)


def _exit(job: EvalJob) -> None:
    os._exit(3)


def _abort(job: EvalJob) -> None:
    os.abort()


def _read_a_mapped_file_that_became_shorter(job: EvalJob) -> None:
    path = Path(job.weights_path) / "mapped"
    path.write_bytes(bytes(1 << 16))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        file.truncate(0)
        mapped[1 << 15]


def _kill_itself(job: EvalJob) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hold_the_interpreter(job: EvalJob) -> None:
    ctypes.PyDLL(None).usleep(990_000)  # as a library does that is not asked to let other threads run
    ctypes.PyDLL(None).usleep(990_000)


def _hang_once(job: EvalJob) -> None:
    if _first_time(job):
        time.sleep(3600)


def _fail_to_start_a_thread(job: EvalJob) -> None:
    raise RuntimeError("can't start new thread")


def _kill_itself_once(job: EvalJob) -> None:
    if _first_time(job):
        os.kill(os.getpid(), signal.SIGKILL)


def _die_replying_once(job: EvalJob) -> None:
    if _first_time(job):
        os.write(int(sys.argv[1]), b"\0\0\1\0the first half of a messa")
        os.kill(os.getpid(), signal.SIGKILL)


def _freeze_once(job: EvalJob) -> None:
    if _first_time(job):
        os.kill(os.getpid(), signal.SIGSTOP)


def _raise_unexpected(job: EvalJob) -> None:
    raise ZeroDivisionError("the text of an unexpected error")


def _hang_ignoring_sigterm(job: EvalJob) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def _hang(job: EvalJob) -> None:
    time.sleep(3600)


def _run_out_of_memory(job: EvalJob) -> None:
    raise OutOfMemory("the device has too little memory")


def _run_out_of_memory_once(job: EvalJob) -> None:
    if _first_time(job):
        raise OutOfMemory("the device has too little memory")


def _load_slowly(job: EvalJob) -> None:
    time.sleep(0.5)


def _load_very_slowly(job: EvalJob) -> None:
    time.sleep(2.0)


def _refuse(job: EvalJob) -> None:
    raise WeightsInvalid("tensor embedding.weight is missing")


_BEFORE_LOAD = {
    "segfaults-loading-once": _segfault_once,
    "dies-loading-once": _kill_itself_once,
    "hangs-loading": _hang,
    "loads-slowly": _load_slowly,
    "loads-very-slowly-a": _load_very_slowly,
    "loads-very-slowly-b": _load_very_slowly,
    "loads-very-slowly-c": _load_very_slowly,
    "refused": _refuse,
}
_BEFORE_PREFETCH = {
    "cannot-be-prefetched": _fail_to_start_a_thread,
    "segfaults-prefetched": _segfault,
    "segfaults-prefetched-too": _segfault,
}
_BEFORE_THIRD_BATCH = {
    "segfaults": _segfault,
    "segfaults-once": _segfault_once,
    "segfaults-and-spoils-the-device": _segfault_and_spoil_the_device,
    "exits": _exit,
    "aborts": _abort,
    "reads-beyond-a-file": _read_a_mapped_file_that_became_shorter,
    "dies": _kill_itself,
    "hangs-once": _hang_once,
    "holds-the-interpreter": _hold_the_interpreter,
    "dies-once": _kill_itself_once,
    "dies-replying-once": _die_replying_once,
    "freezes-once": _freeze_once,
    "raises-unexpected": _raise_unexpected,
    "hangs-ignoring-sigterm": _hang_ignoring_sigterm,
    "out-of-memory": _run_out_of_memory,
    "out-of-memory-once": _run_out_of_memory_once,
}

if __name__ == "__main__":
    main(MisbehavingRunner)
