"""A worker process of the simulated cluster: answers every message as `workers.worker.main` does, in virtual time.

It is what a `Supervisor` starts, so that dispatch, splitting, loading ahead and what follows a loss are the pool's own
code. Which weights stay on its device is decided by the worker's own code too (`ResidentWeights`).
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.network_day.service_times import DeviceTimes
from benchmarks.network_day.simulated_node import SimulatedNode
from workers.architectures import config_of, load_architecture
from workers.messages import (
    Accepted,
    BatchDone,
    Configure,
    Evaluate,
    Finished,
    FromWorker,
    Loaded,
    Prefetch,
    Ready,
    Resident,
    SelfTest,
    Stop,
    Stopped,
    ToWorker,
)
from workers.processes.process_handle import PipeClosed
from workers.processes.timeouts import Timeouts
from workers.types import BatchScore, EvalJob, WeightsId
from workers.worker.resident_weights import ResidentWeights

KILLED = -9
_PIDS = itertools.count(1)
_HEARTBEAT_SECONDS = Timeouts().heartbeat_seconds
_NO_EMBEDDING = np.zeros(1, dtype=np.float32)

Compute = Callable[[float], Awaitable[None]]
"""Has a device compute for so many seconds, which take longer where others compute on the same cores."""


@dataclass(frozen=True, slots=True)
class _Model:
    """Weights on the device."""

    resident_bytes: int


class SimulatedWorker:
    """A `ProcessHandle`. `most_steps`: a task reports its batches in so many bursts at most, which saves time."""

    def __init__(
        self, times: DeviceTimes, node: SimulatedNode, compute: Compute, most_steps: int = 4
    ) -> None:
        self.pid = next(_PIDS)
        self.was_ended_here = False
        self.is_stuck = self.is_stopped = False
        self.busy_seconds = 0.0
        """From the moment that it had a task's files to its last batch, over all tasks; loads included."""
        self.num_sequences = 0
        """That were computed."""
        self.num_loads = self.num_tasks = 0
        self._has_ended = False
        self._times = times
        self._node = node
        self._compute = compute
        self._most_steps = most_steps
        self._weights = ResidentWeights(times.resident_bytes)
        self._reported: frozenset[WeightsId] = frozenset()
        self._inbox: deque[FromWorker | PipeClosed] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loading_ahead: asyncio.Task[None] | None = None
        self._loaded_ahead = ""
        """Checksum of what is being loaded ahead."""

    # -- what a supervisor does with it

    def send(self, message: ToWorker) -> None:
        """Act on a message; nothing here takes time."""
        match message:
            case Configure():
                self._begin(self._self_test(self._times.start))
            case SelfTest():
                self._begin(self._self_test(self._times.self_test))
            case Evaluate():
                self.num_tasks += 1
                self._begin(self._evaluate(message))
            case Prefetch(job):
                if self._loading_ahead is None or self._loading_ahead.done():
                    self._loaded_ahead = job.weights_checksum
                    self._loading_ahead = asyncio.create_task(self._load_ahead(job))
            case Stop(task_id):
                if self._task and not self._task.done():
                    self._task.cancel()
                    self._say(Stopped(task_id))

    async def receive(self, timeout_seconds: float) -> FromWorker | PipeClosed | None:
        """The next message, however long it takes: a simulated worker sends no heartbeats, and its loss is told."""
        while not self._inbox:
            self._arrived.clear()
            await self._arrived.wait()
        return self._inbox.popleft()

    async def end(self, term_grace_seconds: float) -> int:
        """As `kill`."""
        return await self.kill()

    async def kill(self) -> int:
        """End it, with all that it does."""
        self.was_ended_here = True
        self.stop_work()
        return KILLED

    def stop_work(self) -> None:
        """Its machine is lost: it does and says nothing any more."""
        self._has_ended = True
        for task in (self._task, self._loading_ahead):
            if task:
                task.cancel()

    # -- what it does

    def _begin(self, work: "asyncio._CoroutineLike[None]") -> None:
        self._task = asyncio.create_task(work)

    def _say(self, *messages: FromWorker) -> None:
        if not self._has_ended:
            self._inbox.extend(messages)
            self._arrived.set()

    async def _self_test(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._say(Ready(self._times.name, {"torch": "simulated"}, self._times.resident_bytes))

    async def _evaluate(self, task: Evaluate) -> None:
        job = task.job
        assert job.weights_size is not None
        await asyncio.sleep(self._times.per_task)
        await self._node.bring(job.data_checksum, job.data_size)
        await self._node.bring(job.weights_checksum, job.weights_size)
        self._weights.pin(job.weights_id)
        try:
            await self._compute_task(task)
        finally:
            self._weights.unpin(job.weights_id)
        self._say(Finished(task.task_id))

    async def _compute_task(self, task: Evaluate) -> None:
        self._say(Accepted(task.task_id))
        job, loop = task.job, asyncio.get_running_loop()
        began = loop.time()
        was_loaded = await self._load(job)
        self._say(Loaded(task.task_id, loop.time() - began if was_loaded else 0.0))
        for batches in self._steps(range(task.start, task.stop)):
            num_sequences = _num_sequences(job, batches)
            await self._compute(
                num_sequences * self._times.per_sequence + len(batches) * self._times.per_batch
            )
            self.num_sequences += num_sequences
            self._say(
                *(
                    BatchDone(task.task_id, BatchScore(index, 1.0, 1.0, _NO_EMBEDDING, False))
                    for index in batches
                )
            )
        self.busy_seconds += loop.time() - began

    def _steps(self, batches: range) -> list[range]:
        size = -(-len(batches) // self._most_steps)
        return [batches[first : first + size] for first in range(0, len(batches), size)]

    async def _load(self, job: EvalJob) -> bool:
        """Whether the weights were not here. As in `Runner.load`, a load waits for one ahead of the same weights."""
        if self._weights.find(job.weights_id):
            return False
        if self._loading_ahead and not self._loading_ahead.done():
            if self._loaded_ahead != job.weights_checksum:
                self._loading_ahead.cancel()
            await asyncio.wait([self._loading_ahead])
        if not self._weights.find(job.weights_id):
            self._weights.make_room(job.weights_size or 0)
            await self._read_weights(job)
        self._report_resident()
        return True

    async def _load_ahead(self, job: EvalJob) -> None:
        assert job.weights_size is not None
        await self._node.bring(job.weights_checksum, job.weights_size)
        if job.weights_id not in self._weights.ids() and self._weights.make_room(job.weights_size):
            await self._read_weights(job)
            # The next heartbeat reports it: on average, after half of the time between two.
            asyncio.get_running_loop().call_later(_HEARTBEAT_SECONDS / 2, self._report_resident)

    async def _read_weights(self, job: EvalJob) -> None:
        assert job.weights_size is not None
        await self._compute(job.weights_size / self._times.load_bytes_per_second)
        self.num_loads += 1
        self._weights.add(job.weights_id, _Model(job.weights_size))

    def _report_resident(self) -> None:
        resident = self._weights.ids()
        if resident != self._reported:
            self._reported = resident
            self._say(Resident(resident))


def _num_sequences(job: EvalJob, batches: range) -> int:
    """Of these batches, which are full but for the last of the job."""
    config = config_of(load_architecture(job.architecture_version))
    total = config.num_sequences(job.data_size)
    per_batch = config.num_sequences(config.batch_bytes)
    return min(total, batches.stop * per_batch) - min(total, batches.start * per_batch)
