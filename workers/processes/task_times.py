"""When each share of an evaluation was begun, loaded and done, by the messages about it."""

import time
from dataclasses import replace

from workers.messages import Accepted, BatchDone, Evaluate, FromWorker, Loaded
from workers.types import TaskTimes


class TaskClock:
    """Of one evaluation; its clock begins with it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._times: dict[int, TaskTimes] = {}

    @property
    def times(self) -> tuple[TaskTimes, ...]:
        """Of every share that a worker has begun, also of those that were lost with it."""
        return tuple(self._times.values())

    def note(self, task: Evaluate, device: str, message: FromWorker, node: str = "") -> None:
        """A message about a share was received from the worker on a device, of a cluster's node if it has one."""
        now = time.monotonic() - self._began
        if isinstance(message, Accepted):
            self._times[task.task_id] = TaskTimes(device, task.start, task.start, now, now, node=node)
        times = self._times.get(task.task_id)
        if times is None:
            return
        match message:
            case Loaded(_, load_seconds):
                times = replace(times, loaded=now, load_seconds=load_seconds, ended=now)
            case BatchDone(_, score):
                times = replace(times, stop=score.index + 1, ended=now)
        self._times[task.task_id] = times
