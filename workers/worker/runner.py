"""The body of a worker: keeps weights resident on one device and evaluates ranges of batches with them."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from workers import errors
from workers.architectures import (
    CURRENT_VERSION,
    Architecture,
    ArchitectureConfig,
    config_of,
    load_architecture,
    refusals_translated,
)
from workers.types import (
    BatchScore,
    CancelCheck,
    EvalJob,
    OnFraction,
    WeightsId,
    WorkerConfig,
    WorkerMemory,
    ignore_fraction,
)
from workers.worker.device import MACHINE_ERRORS, Device, is_out_of_memory
from workers.worker.resident_weights import LoadedModel, ResidentWeights

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""How often a load that waits for a prefetch looks whether it advances."""


class OtherWeightsWanted(Exception):
    """A prefetch gives up: `load` waits to load other weights."""


class Runner:
    """Evaluates on one device. One thread loads and evaluates; `reserve` and `prefetch` may be called from another."""

    def __init__(
        self, config: WorkerConfig, load_architecture: Callable[[str], Architecture] = load_architecture
    ) -> None:
        self._config = config
        self._load_architecture = load_architecture
        self._device = Device(config)
        architecture = load_architecture(CURRENT_VERSION)
        self._self_test = architecture.SelfTest(
            config.device, config.precision, small_model=self._config_of(architecture).is_small
        )
        self._weights = ResidentWeights(
            config.memory_budget_bytes or self._device.weights_budget_bytes(config.num_on_device)
        )
        self._current: LoadedModel | None = None
        """What the last `load` brought."""
        self._loading = threading.Lock()
        self._wanted: WeightsId | None = None
        """What `load` waits to load, while it waits."""
        self._prefetch_advances = threading.Event()

    @property
    def device_name(self) -> str:
        """What the vendor calls the device; of a CPU also what else decides its bits."""
        return self._device.full_name

    @property
    def versions(self) -> dict[str, str]:
        """Of the architectures that make the numbers."""
        return {"torch": str(torch.__version__), "soma-arrgen": version("soma-arrgen")}

    @property
    def memory_bytes(self) -> int:
        """All that the device has."""
        return self._device.total_bytes

    def self_test(self, *, with_large: bool) -> str | None:
        """None when a known evaluation gives the right numbers; else the wrong ones, in words.

        All other weights leave the device where its memory does not suffice.
        """
        for _ in range(2):
            try:
                wrong: str | None = self._self_test.run(with_large=with_large)
                return wrong
            except MACHINE_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
            self._free_all_others()  # outside of `except`, whose traceback keeps the tensors alive
        return "there is too little memory for a known evaluation"

    def resident(self) -> frozenset[WeightsId]:
        """Whose weights lie on the device."""
        return self._weights.ids()

    def memory(self) -> WorkerMemory:
        """What this process takes of the device's memory. Asks torch and the kernel, and never a GPU's driver."""
        return WorkerMemory(
            self._device.total_bytes,
            self._device.used_bytes(),
            self._weights.num_bytes,
            self._weights.budget_bytes,
        )

    def reserve(self, job: EvalJob) -> None:
        """The job is the next to be loaded and evaluated: no prefetch evicts its weights, until it is released."""
        self._weights.pin(job.weights_id)

    def release(self, job: EvalJob) -> None:
        """The job has ended, in whatever way: its weights stay for another only as long as there is room."""
        self._current = None
        self._weights.unpin(job.weights_id)

    def load(self, job: EvalJob, check_cancelled: CancelCheck) -> float:
        """Bring the weights of a reserved job onto the device. Returns the seconds it took, 0.0 when they were there.

        `check_cancelled` is called each time the work advances, from this thread, and may raise to stop it.

        Raises an EvaluationRefused, FileUnreadable, or OutOfMemory when they do not fit with nothing else there.
        """
        started = time.perf_counter()
        self._current = self._weights.find(job.weights_id)
        if self._current is not None:
            return 0.0
        with self._without_prefetch(job, check_cancelled):
            if job.weights_id not in self._weights.ids():
                self._load_or_make_room(job, check_cancelled)
            self._current = self._weights.find(job.weights_id)
        return time.perf_counter() - started

    def prefetch(self, job: EvalJob) -> None:
        """Load the weights of the job that is next, in the background, if there is memory and time."""
        if self._loading.locked():
            return
        try:
            threading.Thread(target=self._prefetch, args=(job,), name="prefetch", daemon=True).start()
        except RuntimeError as error:  # the system allows no further thread
            logger.debug("prefetch gave up: %s", error)

    def evaluate(
        self,
        job: EvalJob,
        batches: range,
        check_cancelled: CancelCheck,
        on_fraction: OnFraction = ignore_fraction,
    ) -> Iterator[BatchScore]:
        """The scores of those batches (or pieces), in order, with the weights of the last `load`, of this job.

        `on_fraction` is told how far the batch is that is computed, 0 to 1; of pieces nothing.

        When the device's memory does not suffice, all other weights leave it and a batch is cut into
        smaller pieces, once; then OutOfMemory.
        """
        data = b"" if job.pieces else _read_data(job)
        done = batches.start
        try:
            for score in self._scores(job, data, batches, check_cancelled, on_fraction, shrink=False):
                yield score
                done = score.index + 1
        except MACHINE_ERRORS as error:
            if not is_out_of_memory(error):
                raise
        if done < batches.stop:  # outside of `except`, whose traceback keeps the tensors alive
            with self._without_prefetch(job, check_cancelled):
                self._free_all_others()
                yield from self._last_try(job, data, range(done, batches.stop), check_cancelled, on_fraction)

    def _last_try(
        self,
        job: EvalJob,
        data: bytes,
        batches: range,
        check_cancelled: CancelCheck,
        on_fraction: OnFraction,
    ) -> Iterator[BatchScore]:
        try:
            yield from self._scores(job, data, batches, check_cancelled, on_fraction, shrink=True)
        except MACHINE_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise errors.OutOfMemory("there is too little memory to evaluate these weights") from None

    def _scores(
        self,
        job: EvalJob,
        data: bytes,
        batches: range,
        check_cancelled: CancelCheck,
        on_fraction: OnFraction,
        *,
        shrink: bool,
    ) -> Iterator[BatchScore]:
        architecture = self._load_architecture(job.architecture_version)
        runner = self._model_runner(architecture)
        if shrink:
            runner = self._model_runner(architecture, micro_batch_size=max(1, runner.micro_batch_size // 4))
        with refusals_translated(architecture):
            found = _scores_of(runner, self._current, job, data, batches, check_cancelled, on_fraction)
            for first, score in found:
                yield BatchScore(  # every architecture has its own class, and this is the pool's
                    first + score.index,
                    score.cross_entropy,
                    score.sig_reg,
                    score.embedding,
                    score.attends_to_future,
                    score.token_cross_entropy,
                    was_cut_smaller=shrink,
                )

    @contextlib.contextmanager
    def _without_prefetch(self, job: EvalJob, check_cancelled: CancelCheck) -> Iterator[None]:
        """Within the block nothing is loaded ahead. A prefetch under way is waited for: to its end if it is of these
        weights, else until it gives up."""
        self._wanted = job.weights_id
        try:
            while not self._loading.acquire(timeout=POLL_SECONDS):
                if self._prefetch_advances.is_set():
                    self._prefetch_advances.clear()
                    check_cancelled()
            try:
                yield
            finally:
                self._loading.release()
        finally:
            self._wanted = None

    def _load_or_make_room(self, job: EvalJob, check_cancelled: CancelCheck) -> None:
        _check_file(job)
        try:
            self._weights.make_room(self._resident_bytes(job))
            return self._load(job, check_cancelled)
        except MACHINE_ERRORS as error:
            if not is_out_of_memory(error):
                raise
        self._free_all_others()
        try:
            return self._load(job, check_cancelled)
        except MACHINE_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise errors.OutOfMemory("there is too little memory to hold these weights") from None

    def _load(self, job: EvalJob, check_cancelled: CancelCheck) -> None:
        architecture = self._load_architecture(job.architecture_version)
        try:
            with refusals_translated(architecture):
                model = self._model_runner(architecture).load(
                    job.weights_path, job.decryption_key, check_cancelled
                )
        except OSError as error:
            if is_out_of_memory(error):
                raise
            raise _unreadable(error, "weights") from None
        self._weights.add(job.weights_id, model)

    def _prefetch(self, job: EvalJob) -> None:
        """Never at the cost of the weights in use. Errors are dropped: `load` meets the same one, and raises it."""

        def check_cancelled() -> None:
            self._prefetch_advances.set()
            if self._wanted not in (None, job.weights_id):
                raise OtherWeightsWanted

        with self._loading:
            try:
                self._device.choose()
                is_new = job.weights_id not in self._weights.ids()
                if is_new and self._weights.make_room(self._resident_bytes(job)):
                    self._load(job, check_cancelled)
            except Exception as error:
                logger.debug("prefetch gave up: %s", type(error).__name__)

    def _resident_bytes(self, job: EvalJob) -> int:
        """What the job's weights will take on the device, whatever their file does."""
        num_bytes: int = self._model_runner(self._load_architecture(job.architecture_version)).resident_bytes
        return num_bytes

    def _model_runner(self, architecture: Architecture, micro_batch_size: int | None = None) -> Any:
        config = self._config_of(architecture)
        return config.runner(self._config.device, self._config.precision, micro_batch_size)

    def _config_of(self, architecture: Architecture) -> ArchitectureConfig:
        return config_of(architecture, self._config.architecture, small_model=self._config.small_model)

    def _free_all_others(self) -> None:
        self._weights.evict_all()
        self._device.give_back_memory()


def _scores_of(
    runner: Any,
    model: LoadedModel | None,
    job: EvalJob,
    data: bytes,
    which: range,
    check_cancelled: CancelCheck,
    on_fraction: OnFraction,
) -> Iterator[tuple[int, Any]]:
    """Scores of an architecture's own kind, each with the number that its index counts from."""
    if job.pieces:
        pieces = job.pieces[which.start : which.stop]
        for score in runner.eval_pieces(model, pieces, job.seed, check_cancelled):
            yield which.start, score
    else:
        for score in runner.eval_batches(
            model, data, job.seed, which, check_cancelled, detail=job.detail, on_fraction=on_fraction
        ):
            yield 0, score


def _check_file(job: EvalJob) -> None:
    try:
        size = os.path.getsize(job.weights_path)
    except OSError as error:
        raise _unreadable(error, "weights") from None
    _check_size(size, job.weights_size, "weights")


def _read_data(job: EvalJob) -> bytes:
    try:
        data = Path(job.data_path).read_bytes()
    except OSError as error:
        raise _unreadable(error, "data") from None
    except MemoryError:
        raise errors.OutOfMemory("there is too little memory for the data") from None
    _check_size(len(data), job.data_size, "data")
    return data


def _check_size(found: int, expected: int | None, blob: str) -> None:
    """A file that lost bytes on this machine is this machine's trouble, and not its owner's."""
    if expected is not None and found != expected:
        raise errors.FileUnreadable(f"the {blob} could not be read: {found} bytes in place of {expected}")


def _unreadable(error: OSError, blob: str) -> errors.FileUnreadable:
    return errors.FileUnreadable(f"the {blob} could not be read: {error.strerror or 'it became shorter'}")
