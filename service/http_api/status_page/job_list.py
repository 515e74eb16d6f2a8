"""The jobs that the status page lists: those that run here as they are now, the others as the database has them."""

import time
from dataclasses import dataclass

from service.errors import ScoringError
from service.http_api.status_page.job_view import JobRow, row_of
from service.lifespan import Components

NUM_JOBS = 50
READ_AGAIN_SECONDS = 5.0
"""Jobs may also be those of other services on the same database, which tell nobody when one changes."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """Those that run, and those that ended."""

    active: tuple[JobRow, ...]
    """The newest first."""
    ended: tuple[JobRow, ...]
    """The last to end first."""
    trouble: str
    """Why they cannot be read."""


class JobList:
    """Reads the database only when its answer may be another than before."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._stored: dict[str, JobRow] = {}
        self._trouble = ""
        self._read_at = float("-inf")
        self._num_changes = -1

    async def read(self) -> Jobs:
        """The jobs as they are now."""
        jobs = self._components.jobs
        num_changes = jobs.num_changes
        if num_changes != self._num_changes or time.monotonic() - self._read_at >= READ_AGAIN_SECONDS:
            try:
                stored = await jobs.page(limit=NUM_JOBS)
                self._stored, self._trouble = {job.id: row_of(job) for job in stored}, ""
            except ScoringError as error:
                self._trouble = f"{error.title}: {error.detail}."
            self._num_changes, self._read_at = num_changes, time.monotonic()
        rows = (self._stored | {job.id: row_of(job) for job in jobs.own_jobs()}).values()
        active = sorted((row for row in rows if row.ended is None), key=lambda row: -row.created)
        ended = sorted((row for row in rows if row.ended is not None), key=lambda row: -(row.ended or 0.0))
        return Jobs(tuple(active), tuple(ended), self._trouble)
