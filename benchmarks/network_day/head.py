"""The service of a simulated day, and of a real one: each submission through the real scheduler and a real pool.

The calls of the scheduler and their order are those of `service.scoring.scorer` and `service.scoring.input_files`.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.network_day.shared_resource import SharedResource
from benchmarks.network_day.workload import Submission
from service.errors import ScoringError
from service.scoring.scheduler import Scheduler, Ticket
from service.scoring.task_errors import first_of_ours
from workers.errors import WorkerError
from workers.pool import WorkerPool
from workers.types import EvalJob

JobOf = Callable[[Submission, str], EvalJob]
"""The evaluation of a submission's data by the model with these weights."""


class HeadFiles(Protocol):
    """The weights that the service has downloaded."""

    def size_of(self, checksum: str) -> int | None:
        """None where they are not here."""

    async def fetch(self, checksum: str) -> None:
        """Return once they are here."""


class Downloads:
    """Weights that publishers send, each file once, kept until room is needed: stands for `BlobCache`."""

    def __init__(self, internet: SharedResource, weights_bytes: int, max_bytes: int) -> None:
        self._internet = internet
        self._weights_bytes = weights_bytes
        self._max_files = max(1, max_bytes // weights_bytes)
        self._files: OrderedDict[str, None] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def size_of(self, checksum: str) -> int | None:
        """None where they are not here."""
        return self._weights_bytes if checksum in self._files else None

    async def fetch(self, checksum: str) -> None:
        """Return once they are here."""
        if checksum not in self._files:
            download = self._under_way.get(checksum)
            if download is None:
                download = self._under_way[checksum] = asyncio.create_task(self._download(checksum))
            await asyncio.shield(download)
        self._files.move_to_end(checksum)

    async def _download(self, checksum: str) -> None:
        try:
            await self._internet.use(self._weights_bytes)
            while len(self._files) >= self._max_files:
                self._files.popitem(last=False)
            self._files[checksum] = None
        finally:
            del self._under_way[checksum]


class AllHere:
    """Weights that need no download."""

    def __init__(self, weights_bytes: int) -> None:
        self._weights_bytes = weights_bytes

    def size_of(self, checksum: str) -> int | None:
        """Always known."""
        return self._weights_bytes

    async def fetch(self, checksum: str) -> None:
        """They are."""


@dataclass(slots=True)
class Outcomes:
    """What became of every submission; each ends once."""

    ended: Counter[str] = field(default_factory=Counter)
    """"done", or the name of the error."""
    response_seconds: list[float] = field(default_factory=list)
    """Of those that are done, in the order in which they ended."""
    last_at: float = 0.0
    """When the last one ended, in seconds since the first could come."""

    @property
    def num_done(self) -> int:
        """Submissions that have all their results."""
        return self.ended["done"]


class Head:
    """Answers submissions."""

    def __init__(self, scheduler: Scheduler, pool: WorkerPool, files: HeadFiles, job_of: JobOf) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._files = files
        self._job_of = job_of

    async def answer_all(self, submissions: Iterable[Submission]) -> Outcomes:
        """Take each submission at its time; returns when all have ended."""
        loop, outcomes = asyncio.get_running_loop(), Outcomes()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for submission in submissions:
                await asyncio.sleep(max(0.0, began + submission.at - loop.time()))
                group.create_task(self._answer(submission, outcomes))
        outcomes.last_at = loop.time() - began
        return outcomes

    async def _answer(self, submission: Submission, outcomes: Outcomes) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with self._scheduler.admit(len(submission.weights)) as ticket:
                await self._evaluate_all(ticket, submission)
        except (ScoringError, WorkerError) as error:
            outcomes.ended[type(error).__name__] += 1
        else:
            outcomes.ended["done"] += 1
            outcomes.response_seconds.append(loop.time() - began)

    async def _evaluate_all(self, ticket: Ticket, submission: Submission) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for checksum in submission.weights:
                    group.create_task(self._evaluate(ticket, self._job_of(submission, checksum)))
        except BaseExceptionGroup as failures:  # the first has cancelled the others
            raise first_of_ours(failures.exceptions) from None

    async def _evaluate(self, ticket: Ticket, job: EvalJob) -> None:
        try:
            async with AsyncExitStack() as held:
                await self._hold_weights(held, ticket, job)
                entry = held.enter_context(self._scheduler.queue_entry(ticket))
                await self._pool.evaluate(job, entry=entry)
        finally:
            ticket.num_finished += 1

    async def _hold_weights(self, held: AsyncExitStack, ticket: Ticket, job: EvalJob) -> None:
        checksum, size = job.weights_checksum, job.weights_size or 0
        while True:
            is_here = self._files.size_of(checksum) is not None
            async with AsyncExitStack() as grants:
                slot = await grants.enter_async_context(
                    self._scheduler.weights_slot(ticket, size, is_downloaded=is_here)
                )
                if is_here and self._files.size_of(checksum) is None:
                    continue  # evicted while it waited for its slot
                await self._files.fetch(checksum)
                slot.release_connection()
                await held.enter_async_context(grants.pop_all())
                return
