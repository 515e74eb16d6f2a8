"""Which worker is given which evaluation: of several that hold or lack weights, and of several that wait."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.workers.processes.pools import (
    BYTES_PER_BATCH,
    SHORT_TIMEOUTS,
    cpus,
    job,
    misbehaving_pool,
    until_whole,
)
from workers.architectures import CURRENT_VERSION, config_of, load_architecture
from workers.messages import Evaluate, Loaded
from workers.processes.begin_times import BeginTimes
from workers.processes.dispatch import next_assignment, next_to_load_ahead
from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.process_handle import ProcessHandle
from workers.processes.process_pool import ProcessPool
from workers.processes.quarantine import Quarantine
from workers.processes.running_worker import RunningWorker, State
from workers.processes.supervisor import Place, Supervisor
from workers.types import BatchScore, EvalJob, EvalResult, WorkerConfig

CONFIG = config_of(load_architecture(CURRENT_VERSION))
LOAD_SECONDS = 5.0
pytestmark = pytest.mark.asyncio


@dataclass
class At:
    """A queue entry whose place is known."""

    rank: float

    def begin(self) -> None:
        """Nothing depends on it here."""


def job_of(weights: str, num_batches: int = 1) -> EvalJob:
    return EvalJob("path", weights, "data", num_batches * BYTES_PER_BATCH, 0)


async def no_process(config: WorkerConfig) -> ProcessHandle:
    raise OSError


class Situation:
    """Workers that hold weights and are idle or busy, and what they are asked for. No process is started."""

    def __init__(self) -> None:
        self.pool = ProcessPool()
        self.workers: list[Supervisor] = []
        self.evaluations: list[PendingEvaluation] = []
        self.num_tasks = 0
        self.times = BeginTimes()
        self.times.load_seconds = LOAD_SECONDS

    def worker(self, *held: str, node: str = "") -> Supervisor:
        """One more, idle, on whose device these weights lie."""
        config = WorkerConfig("cpu")
        worker = Supervisor(len(self.workers), config, Place(node), self.pool, SHORT_TIMEOUTS, no_process)
        running = RunningWorker(config, "cpu", SHORT_TIMEOUTS, no_process, worker)
        running.state, running.resident = (
            State.IDLE,
            frozenset(job_of(weights).weights_id for weights in held),
        )
        worker._worker = running
        self.workers.append(worker)
        return worker

    def ask(
        self, weights: str, rank: float, *, waited: float = 100.0, num_batches: int = 1
    ) -> PendingEvaluation:
        """For one more evaluation, so many seconds ago."""
        evaluation = PendingEvaluation(job_of(weights, num_batches), CONFIG, None, At(rank))
        evaluation._asked_at -= waited
        self.evaluations.append(evaluation)
        return evaluation

    def begin(self, evaluation: PendingEvaluation, worker: Supervisor, *, loaded: bool = True) -> int:
        """The worker takes all of it; returns its task."""
        self.num_tasks += 1
        self.pool._by_task[self.num_tasks] = evaluation
        batches = evaluation.take(self.num_tasks, worker.kind, num_workers=1)
        worker.assign(Evaluate(self.num_tasks, evaluation.job, batches.start, batches.stop))
        if loaded:
            assert worker._worker is not None
            worker._worker._act_on_task(Loaded(self.num_tasks, 0.0))
        return self.num_tasks

    def busy_worker(self, *held: str, node: str = "") -> Supervisor:
        """One more that holds these weights, and evaluates the first of them."""
        worker = self.worker(*held, node=node)
        self.begin(self.ask(held[0], 0.0, num_batches=2), worker)
        return worker

    def next(self) -> tuple[PendingEvaluation, Supervisor] | None:
        return next_assignment(self.evaluations, self.workers, Quarantine(), self.times)

    def next_ahead(self) -> tuple[PendingEvaluation, Supervisor] | None:
        return next_to_load_ahead(self.evaluations, self.workers, Quarantine(), self.times)


def score(index: int) -> BatchScore:
    return BatchScore(index, 1.0, 1.0, np.zeros(2, np.float32), False)


@pytest.fixture
def here() -> Situation:
    return Situation()


# -- who begins


async def test_of_those_whose_weights_lie_nowhere_the_lowest_rank_is_next(here: Situation) -> None:
    worker = here.worker("other")
    here.ask("a", 2.0)
    first = here.ask("b", 1.0)
    assert here.next() == (first, worker)


async def test_a_worker_rather_takes_what_it_holds(here: Situation) -> None:
    here.worker("other")
    worker = here.worker("b")
    here.ask("a", 1.0)
    held = here.ask("b", 1.0 + 0.9 * LOAD_SECONDS)
    assert here.next() == (held, worker)


async def test_one_is_overtaken_by_no_more_than_loading_it_takes(here: Situation) -> None:
    worker = here.worker("b")
    first = here.ask("a", 1.0)
    here.ask("b", 1.0 + 1.1 * LOAD_SECONDS)
    assert here.next() == (first, worker)


async def test_before_any_load_was_seen_all_go_by_their_rank(here: Situation) -> None:
    worker = here.worker("b")
    first = here.ask("a", 1.0)
    here.ask("b", 1.1)
    here.times = BeginTimes()
    assert here.next() == (first, worker)


async def test_a_stream_of_evaluations_whose_weights_are_there_does_not_starve_another(
    here: Situation,
) -> None:
    worker = here.worker("b")
    other = here.ask("a", 0.0)
    for number in range(100):
        here.ask("b", float(number))
        chosen = here.next()
        assert chosen is not None
        if chosen[0] is other:
            break
        here.evaluations.remove(chosen[0])
    assert number == LOAD_SECONDS
    assert chosen == (other, worker)


async def test_what_was_begun_goes_on_before_anything_else(here: Situation) -> None:
    worker = here.worker("b")
    here.ask("b", 0.0)
    begun = here.ask("a", 9.0, num_batches=2)
    begun.give_back(here.begin(begun, here.worker()))
    assert here.next() == (begun, worker)


# -- what a busy worker holds


async def test_what_is_new_waits_for_the_busy_worker_that_holds_its_weights(here: Situation) -> None:
    here.busy_worker("a")
    here.worker()
    here.ask("a", 1.0, waited=0.0)
    assert here.next() is None


async def test_meanwhile_an_idle_worker_takes_one_whose_weights_lie_nowhere(here: Situation) -> None:
    here.busy_worker("a")
    idle = here.worker()
    here.ask("a", 1.0, waited=0.0)
    other = here.ask("b", 50.0, waited=0.0)
    assert here.next() == (other, idle)


async def test_what_has_waited_for_as_long_as_a_load_takes_goes_to_any(here: Situation) -> None:
    here.busy_worker("a")
    idle = here.worker()
    waiting = here.ask("a", 1.0)
    assert here.next() == (waiting, idle)


async def test_weights_that_would_be_loaded_twice_count_as_two_loads(here: Situation) -> None:
    here.busy_worker("a")
    idle = here.worker()
    here.ask("a", 1.0)
    other = here.ask("b", 1.0 + 0.9 * LOAD_SECONDS)
    assert here.next() == (other, idle)
    here.evaluations.remove(other)
    here.ask("b", 1.0 + 1.1 * LOAD_SECONDS)
    chosen = here.next()
    assert chosen is not None
    assert chosen[0].job.weights_checksum == "a"


async def test_none_waits_for_a_worker_that_is_known_to_be_busy_for_longer_than_a_load(
    here: Situation,
) -> None:
    here.busy_worker("a")
    idle = here.worker()
    waiting = here.ask("a", 1.0, waited=0.0)
    running = here.evaluations[0]
    running.loaded("cpu", 0.0, {})
    running.batch_done(score(0))
    here.times.load_seconds = 60.0
    assert here.next() is None
    running._last_scored_at = running._first_loaded_at + 61.0  # the other batch takes as long
    assert here.next() == (waiting, idle)


async def test_what_a_busy_worker_is_loading_counts_as_held(here: Situation) -> None:
    worker, idle = here.worker(), here.worker()
    here.begin(here.ask("a", 0.0), worker, loaded=False)
    here.ask("a", 1.0, waited=0.0)
    assert here.next() is None
    other = here.ask("b", 2.0, waited=0.0)
    assert here.next() == (other, idle)


# -- where the files are


SEND_SECONDS = 40.0


@pytest.fixture
def nodes(here: Situation) -> Situation:
    """On which files must be sent to nodes; the node "x" has that of the weights "a"."""
    here.times.send_seconds = SEND_SECONDS
    here.times.note_loaded(job_of("a").weights_id, "x", 0.0, 0.0)
    return here


async def test_of_idle_workers_the_one_whose_node_has_the_file_is_preferred(nodes: Situation) -> None:
    nodes.worker(node="y")
    near = nodes.worker("other", node="x")
    evaluation = nodes.ask("a", 1.0)
    assert nodes.next() == (evaluation, near)


async def test_one_whose_file_is_there_goes_before_one_whose_file_must_be_sent(nodes: Situation) -> None:
    near = nodes.worker(node="x")
    sent = nodes.ask("b", 1.0)
    there = nodes.ask("a", 1.0 + 0.9 * SEND_SECONDS)
    assert nodes.next() == (there, near)
    nodes.evaluations.remove(there)
    nodes.ask("a", 1.0 + 1.1 * SEND_SECONDS)
    assert nodes.next() == (sent, near)


async def test_what_is_new_waits_for_the_busy_worker_whose_node_has_the_file(nodes: Situation) -> None:
    nodes.busy_worker("other", node="x")
    idle = nodes.worker(node="y")
    evaluation = nodes.ask("a", 1.0, waited=0.9 * SEND_SECONDS)
    assert nodes.next() is None
    evaluation._asked_at -= 0.2 * SEND_SECONDS
    assert nodes.next() == (evaluation, idle)


async def test_no_second_node_is_sent_a_file_only_to_load_ahead(nodes: Situation) -> None:
    far = nodes.busy_worker("other", node="y")
    nodes.worker(node="x")  # which cannot load ahead now
    held_back = nodes.ask("a", 1.0)
    assert nodes.next_ahead() is None
    nowhere = nodes.ask("b", 2.0)
    assert nodes.next_ahead() == (nowhere, far)
    near = nodes.busy_worker("another", node="x")
    assert nodes.next_ahead() == (held_back, near)


async def test_no_node_is_sent_a_file_to_help_before_the_first_batch_tells_whether_it_is_worth_it(
    nodes: Situation,
) -> None:
    worker = nodes.worker(node="x")
    running = nodes.ask("a", 1.0, num_batches=8)
    running.take(1, worker.kind, num_workers=2)
    worker.assign(Evaluate(1, running.job, 0, 2))
    far = nodes.worker(node="y")
    assert nodes.next() is None
    running.loaded("cpu", 0.0, {})
    running.batch_done(score(0))
    running._last_scored_at = running._first_loaded_at + SEND_SECONDS  # seven more take seven times as long
    assert nodes.next() == (running, far)


async def test_on_this_machine_every_file_is_there() -> None:
    times = BeginTimes()
    times.note_loaded(job_of("a").weights_id, "", 2.0, 2.5)
    assert (times.load_seconds, times.send_seconds) == (2.0, 0.0)
    assert times.is_on(job_of("b").weights_id, {""})


async def test_how_long_a_worker_takes_is_what_it_took_of_late() -> None:
    times, a, b = BeginTimes(), job_of("a").weights_id, job_of("b").weights_id
    assert times.seconds(a, set(), {"x"}) == 0.0
    times.note_loaded(a, "x", 2.0, 32.0)  # it was sent the file
    times.note_loaded(a, "x", 4.0, 4.5)  # it had it
    times.note_loaded(a, "x", 0.0, 0.5)  # it held the weights
    assert (times.load_seconds, times.send_seconds) == (3.0, 30.0)
    assert times.seconds(a, {a}, {"x"}) == 0.0
    assert times.seconds(a, {b}, {"x", "y"}) == 3.0
    assert times.seconds(a, {b}, {"y"}) == times.seconds(b, set(), {"x"}) == 33.0
    assert times.seconds(a, set(), set()) == float("inf")


# -- who loads ahead


async def test_the_next_whose_weights_lie_nowhere_is_loaded_ahead(here: Situation) -> None:
    first, second = here.busy_worker("a", "c"), here.busy_worker("b")
    here.ask("c", 1.0)
    here.ask("e", 3.0)
    lacking = here.ask("d", 2.0)
    here.evaluations[0].batch_done(score(0))  # the first worker has less left
    assert here.next_ahead() == (lacking, first)
    first.load_ahead(lacking.job)
    assert here.next_ahead() == (here.evaluations[3], second)
    second.load_ahead(here.evaluations[3].job)
    assert here.next_ahead() is None


async def test_a_worker_that_loads_for_its_task_is_not_asked_to_load_ahead(here: Situation) -> None:
    here.begin(here.ask("a", 0.0), here.worker(), loaded=False)
    here.ask("b", 1.0)
    assert here.next_ahead() is None


async def test_a_worker_that_had_to_load_for_its_task_may_be_asked_again(here: Situation) -> None:
    worker = here.busy_worker("a")
    worker.load_ahead(job_of("b"))
    assert not worker.can_load_ahead
    assert worker._worker is not None
    worker._worker._act_on_task(Loaded(here.num_tasks, 1.0))
    assert worker.can_load_ahead


# -- with real workers


async def test_three_models_on_two_workers_are_loaded_once_each(tmp_path: Path) -> None:
    kinds = ["loads-very-slowly-a", "loads-very-slowly-b", "loads-very-slowly-c"]

    async with misbehaving_pool(cpus(2)) as pool:

        async def evaluate(number: int) -> EvalResult:
            return await pool.evaluate(job(kinds[number % 3], tmp_path, num_batches=1, seed=number))

        first = [*await asyncio.gather(evaluate(0), evaluate(1)), await evaluate(2)]
        await until_whole(pool)
        later = await asyncio.gather(*(evaluate(number) for number in range(3, 18)))
        held = [status.resident for status in pool.status()]
    assert [result.cross_entropy for result in [*first, *later]] == [float(number) for number in range(18)]
    assert not [result for result in later if result.load_seconds]
    assert sum(len(weights) for weights in held) == 3
