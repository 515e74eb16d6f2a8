"""Threads that share an evaluation, each of which computes by itself.

torch shares out the work of every single operation, so its threads meet thousands of times in one evaluation. Those
that spin while they wait starve each other on a busy machine, and those that sleep give away half of an idle one.
The threads of a team share whole parts of an evaluation instead: each runs the operations of its part one after the
other, on one core, and takes the next part when it is done. So a thread that the system holds up holds up no
other, and no number depends on how many threads there are.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from .cancellation import CancelCheck

T = TypeVar("T")
R = TypeVar("R")

PROGRESS_SECONDS = 0.01
"""Progress is told no more often: it wakes the thread that waits for the result, at the cost of those that compute."""


class Team(Protocol):
    """Who computes."""

    def share(
        self, function: Callable[[T], R], items: Sequence[T], most_at_once: int | None = None
    ) -> list[R]:
        """`function` of each item, in order, done by whoever has time; at most so many at once.

        It may be called from within such a function. An item that raises ends the whole evaluation.
        """


class OneThread:
    """The calling thread alone, with all the threads that torch's operations have in it. Also for a GPU."""

    def __init__(self, check_cancelled: CancelCheck) -> None:
        """`check_cancelled` is called behind every item, and may raise."""
        self._check_cancelled = check_cancelled

    def share(
        self, function: Callable[[T], R], items: Sequence[T], most_at_once: int | None = None
    ) -> list[R]:
        """One after the other."""
        results = []
        for item in items:
            results.append(function(item))
            self._check_cancelled()
        return results


def compute(work: Callable[[Team], R], num_threads: int, check_cancelled: CancelCheck) -> R:
    """What `work` returns, computed by a team of so many threads while this one waits; by this one if it is one.

    `check_cancelled` is called from this thread whenever the work has advanced, and may raise to stop it. What it or
    any part of the work raises is raised here, once every thread has left the work.

    The threads are started when they are first needed, and kept. Starting one leaves the number of threads that torch
    uses elsewhere in this process as it is. Raises RuntimeError where the system allows no further thread.
    """
    if num_threads == 1:
        return work(OneThread(check_cancelled))
    result: R = _ThreadTeam(work).run(num_threads, check_cancelled)
    return result


class _Stopped(Exception):
    """Unwinds what the other threads do when one has failed, or the evaluation is cancelled."""


@dataclass(slots=True, eq=False)
class _Shared:
    """Items that are being worked on. Its numbers change under the team's lock alone."""

    function: Callable[[Any], Any]
    items: Sequence[Any]
    most_at_once: int
    results: list[Any]
    num_begun: int = 0
    num_ended: int = 0

    @property
    def may_begin(self) -> bool:
        return self.num_begun < len(self.items) and self.num_begun - self.num_ended < self.most_at_once


class _ThreadTeam:
    """One evaluation by several threads."""

    def __init__(self, work: Callable[[Team], Any]) -> None:
        self._whole = _Shared(work, [self], 1, [None])
        self._open = [self._whole]
        """What is shared now: what an item shares in its turn stands behind it."""
        self._failure: BaseException | None = None
        self._num_inside = 0
        self._lock = threading.Lock()
        self._something_to_do = threading.Condition(self._lock)
        self._something_done = threading.Condition(self._lock)
        self._progress: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._next_progress = 0.0

    def run(self, num_threads: int, check_cancelled: CancelCheck) -> Any:
        """The whole of it, for the thread that waits."""
        threads = _acquire(num_threads)
        self._num_inside = num_threads
        for thread in threads:
            thread.teams.put(self)
        while self._num_inside:
            try:
                self._progress.get()
                if self._failure is None:
                    check_cancelled()
            except BaseException as error:
                # KeyboardInterrupt too: no thread may work on behind the caller's back.
                self._fail(error)
        _idle.extend(threads)
        if self._failure is None:
            return self._whole.results[0]
        failure, self._failure = self._failure, None
        try:
            raise failure
        finally:
            # It holds this frame, which must not hold it: else its tensors stay until a collection.
            del failure

    def work(self) -> None:
        """The whole of it, for each of the threads that compute."""
        try:
            self._work_until_done(self._whole, self._something_to_do)
        finally:
            with self._lock:
                self._num_inside -= 1
            self._progress.put(None)

    def share(
        self, function: Callable[[T], R], items: Sequence[T], most_at_once: int | None = None
    ) -> list[R]:
        if self._failure is not None:
            raise _Stopped
        if len(items) == 1:
            result = function(items[0])
            self._tell_progress()
            return [result]
        shared = _Shared(function, items, most_at_once or len(items), [None] * len(items))
        with self._lock:
            self._open.append(shared)
            self._something_to_do.notify(min(len(items), shared.most_at_once) - 1)
        self._work_until_done(shared, self._something_done)
        with self._lock:
            self._open.remove(shared)
        if self._failure is not None:
            raise _Stopped
        return shared.results

    def _work_until_done(self, shared: _Shared, changed: threading.Condition) -> None:
        """Do items of it, and in between of what was shared later: these are parts of one that another thread does."""
        while True:
            with self._lock:
                while (found := self._to_begin(shared)) is None:
                    if self._is_done(shared):
                        return
                    changed.wait()
                index = found.num_begun
                found.num_begun += 1
            self._do(found, index)

    def _to_begin(self, first: _Shared) -> _Shared | None:
        if self._failure is not None:
            return None
        start = self._open.index(first)
        return next((shared for shared in self._open[start:] if shared.may_begin), None)

    def _is_done(self, shared: _Shared) -> bool:
        return shared.num_ended == (len(shared.items) if self._failure is None else shared.num_begun)

    def _do(self, shared: _Shared, index: int) -> None:
        try:
            shared.results[index] = shared.function(shared.items[index])
        except BaseException as error:
            self._fail(error)
        with self._lock:
            shared.num_ended += 1
            if self._is_done(shared):
                self._something_done.notify_all()
            if self._is_done(self._whole):
                self._something_to_do.notify_all()
        self._tell_progress()

    def _tell_progress(self) -> None:
        now = time.monotonic()
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_SECONDS
            self._progress.put(None)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
            self._something_to_do.notify_all()
            self._something_done.notify_all()


class _ComputeThread(threading.Thread):
    """Works for one team after the other. Every operation of torch that it runs is done by itself alone."""

    def __init__(self) -> None:
        super().__init__(name="compute", daemon=True)
        self.teams: queue.SimpleQueue[_ThreadTeam] = queue.SimpleQueue()
        self._is_ready = threading.Event()
        self.start()
        self._is_ready.wait()

    def run(self) -> None:
        # A thread takes its number from the process's when it first needs it, and not again once it was asked for it.
        torch.get_num_threads()
        torch.set_num_threads(1)
        self._is_ready.set()
        with torch.inference_mode():
            while True:
                self.teams.get().work()


_idle: list[_ComputeThread] = []
"""Those of the process that no team has; a list's `pop` and `extend` may be called from any thread."""
os.register_at_fork(after_in_child=_idle.clear)  # a child has none of its parent's threads


def _acquire(num_threads: int) -> list[_ComputeThread]:
    threads: list[_ComputeThread] = []
    try:
        while len(threads) < num_threads:
            try:
                threads.append(_idle.pop())
            except IndexError:
                threads.append(_start_thread())
    except BaseException:
        _idle.extend(threads)
        raise
    return threads


def _start_thread() -> _ComputeThread:
    """torch counts threads for each thread, and for those that come later: their number is set back here."""
    num_threads = torch.get_num_threads()
    try:
        return _ComputeThread()
    finally:
        torch.set_num_threads(num_threads)
