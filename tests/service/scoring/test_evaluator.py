"""One evaluation computed once: what is kept, what is shared, and what neither is."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from service.metrics import Metrics
from service.scoring.evaluator import Computed, Evaluator
from service.scoring.kept_results import KeptResult, ResultKey, ServedModel
from tests.in_process_pool import VERSIONS, Answer, InProcessPool, eval_result
from workers.errors import (
    DecryptionFailed,
    EvaluationCrashesWorker,
    NonFiniteResult,
    OutOfMemory,
    WeightsInvalid,
    WorkerCrashed,
    WorkerError,
)
from workers.types import DeviceKind, DeviceStatus, EvalJob, EvalProgress

JOB = EvalJob("weights", "W", "data", 10, 7, bytes(range(32)), data_checksum="D")
MODEL = ServedModel("1", {"embedding_dim": 16}, "float32")


class Kept:
    """A store in memory."""

    def __init__(self) -> None:
        self.results: dict[str, KeptResult] = {}

    async def find(self, keys: Sequence[ResultKey]) -> dict[ResultKey, KeptResult]:
        await asyncio.sleep(0)
        return {key: self.results[key.digest()] for key in keys if key.digest() in self.results}

    async def keep(self, found: Mapping[ResultKey, KeptResult]) -> None:
        await asyncio.sleep(0)
        self.results |= {key.digest(): result for key, result in found.items()}

    async def forget(self, key: ResultKey) -> None:
        del self.results[key.digest()]


class Setup:
    """An evaluator over a pool without processes, with what it keeps and counts."""

    def __init__(self, answer: Answer | None = None, pool: InProcessPool | None = None) -> None:
        self.pool = pool or InProcessPool(default=answer)
        self.kept = Kept()
        self.metrics = Metrics()
        self.evaluator = Evaluator(self.pool, self.kept, MODEL, self.metrics)
        self.num_turns = 0
        self.progress: list[EvalProgress] = []

    async def ask(self, job: EvalJob = JOB, *, anew: bool = False) -> Computed:
        return await self.evaluator.evaluate(job, self._turn(), self.progress.append, anew=anew)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self.num_turns += 1
        yield

    def count(self, name: str) -> float:
        families = text_string_to_metric_families(self.metrics.render().decode())
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == f"soma_eval_{name}_total")

    async def until_running(self) -> None:
        while self.pool.num_running == 0:
            await asyncio.sleep(0)


async def test_the_second_time_no_worker_is_used() -> None:
    setup = Setup()
    first, second = await setup.ask(), await setup.ask()
    assert (len(setup.pool.jobs), setup.num_turns) == (1, 1)
    assert (first.was_kept, second.was_kept) == (False, True)
    assert (second.result, second.computed_at) == (first.result, first.computed_at)
    assert setup.count("result_cache_hits") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"weights_checksum": "V"},
        {"data_checksum": "E"},
        {"seed": 8},
        {"decryption_key": None},
        {"decryption_key": bytes(32)},
        {"detail": True},
    ],
    ids=str,
)
async def test_other_content_is_computed(change: dict[str, Any]) -> None:
    setup = Setup()
    await setup.ask()
    assert not (await setup.ask(replace(JOB, **change))).was_kept


async def test_the_same_bytes_elsewhere_are_the_same_content() -> None:
    setup = Setup()
    await setup.ask()
    assert (await setup.ask(replace(JOB, weights_path="elsewhere", data_path="there"))).was_kept


def test_everything_that_decides_the_bits_is_in_the_key() -> None:
    key = MODEL.key(JOB, DeviceKind("cuda", "H100"), VERSIONS)
    others = [
        replace(MODEL, config={"embedding_dim": 32}).key(JOB, DeviceKind("cuda", "H100"), VERSIONS),
        replace(MODEL, precision="tf32").key(JOB, DeviceKind("cuda", "H100"), VERSIONS),
        MODEL.key(JOB, DeviceKind("cuda", "H200"), VERSIONS),
        MODEL.key(JOB, DeviceKind("cuda", "H100"), {"torch": "another"}),
        replace(key, numerics_version="another"),
        replace(key, architecture_version="2"),
    ]
    assert len({key.digest(), *(other.digest() for other in others)}) == 7


def test_the_key_of_a_result_does_not_tell_the_decryption_key() -> None:
    secret = bytes(range(32))
    shown = repr(MODEL.key(replace(JOB, decryption_key=secret), DeviceKind("cpu", ""), VERSIONS))
    assert secret.hex() not in shown
    assert JOB.weights_id[2] not in shown  # nor is it the digest that anything else uses


@pytest.mark.parametrize("kind", [DecryptionFailed, WeightsInvalid, NonFiniteResult])
async def test_a_verdict_is_kept(kind: type[WorkerError]) -> None:
    setup = Setup(kind("so it is"))
    for _ in range(2):
        with pytest.raises(kind, match="so it is"):
            await setup.ask()
    assert len(setup.pool.jobs) == 1
    assert setup.count("result_cache_hits") == 1


@pytest.mark.parametrize("kind", [WorkerCrashed, OutOfMemory, EvaluationCrashesWorker])
async def test_trouble_is_not_kept(kind: type[WorkerError]) -> None:
    setup = Setup(kind("just now"))
    for _ in range(2):
        with pytest.raises(kind):
            await setup.ask()
    assert len(setup.pool.jobs) == 2
    assert not setup.kept.results


async def test_a_result_that_lack_of_memory_has_changed_is_not_kept() -> None:
    setup = Setup(replace(eval_result(), was_cut_smaller=True))
    await setup.ask()
    assert not setup.kept.results


async def test_ten_callers_at_once_are_one_evaluation() -> None:
    setup = Setup()
    setup.pool.released.clear()
    callers = [asyncio.create_task(setup.ask()) for _ in range(10)]
    await setup.until_running()
    setup.pool.released.set()
    answers = await asyncio.gather(*callers)
    assert (len(setup.pool.jobs), setup.num_turns) == (1, 1)
    assert {answer.result.loss for answer in answers} == {1.0}
    assert setup.progress.count(EvalProgress("evaluating", 1, 1)) == 10


@pytest.mark.parametrize("leaving", [0, 1], ids=["the one that computes", "one that waits"])
async def test_a_caller_that_leaves_costs_the_others_nothing(leaving: int) -> None:
    setup = Setup()
    setup.pool.released.clear()
    callers = [asyncio.create_task(setup.ask()) for _ in range(3)]
    await setup.until_running()
    callers.pop(leaving).cancel()
    await asyncio.sleep(0)
    await setup.until_running()
    setup.pool.released.set()
    assert {answer.result.loss for answer in await asyncio.gather(*callers)} == {1.0}
    assert setup.pool.num_cancelled == (leaving == 0)


async def test_when_the_last_caller_leaves_the_work_stops() -> None:
    setup = Setup()
    setup.pool.released.clear()
    callers = [asyncio.create_task(setup.ask()) for _ in range(3)]
    await setup.until_running()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert setup.pool.num_running == 0
    setup.pool.released.set()
    assert not (await setup.ask()).was_kept


async def test_callers_share_an_error_and_each_has_its_own_exception() -> None:
    setup = Setup(WorkerCrashed("gone"))
    setup.pool.released.clear()
    callers = [asyncio.create_task(setup.ask()) for _ in range(3)]
    await setup.until_running()
    setup.pool.released.set()
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [WorkerCrashed] * 3
    assert len({id(error) for error in errors}) == 3
    assert len(setup.pool.jobs) == 1


async def test_anew_is_computed_and_the_same_bits_are_no_news() -> None:
    setup = Setup()
    first = await setup.ask()
    with capture_logs() as logs:
        assert not (await setup.ask(anew=True)).was_kept
    assert (await setup.ask()).computed_at == first.computed_at
    assert len(setup.pool.jobs) == 2
    assert (logs, setup.count("result_mismatches")) == ([], 0)


@pytest.mark.parametrize(
    "kept",
    [
        eval_result(loss=1.0 + 2**-52),
        replace(eval_result(), embedding=eval_result(embedding=-1.0).embedding),
        replace(eval_result(), attends_to_future=True),
        NonFiniteResult("NaN"),
    ],
    ids=["loss", "embedding", "flag", "verdict"],
)
async def test_one_other_bit_is_reported_and_neither_result_is_believed(kept: Answer) -> None:
    pool = InProcessPool({"W": kept})
    setup = Setup(pool=pool)
    with suppress(NonFiniteResult):
        await setup.ask()
    pool._answers.clear()
    with capture_logs() as logs:
        assert (await setup.ask(anew=True)).result.loss == 1.0
    (line,) = logs
    assert (line["log_level"], line["weights_checksum"], line["data_checksum"]) == ("error", "W", "D")
    assert setup.count("result_mismatches") == 1
    assert not setup.kept.results
    assert not (await setup.ask()).was_kept


async def test_detail_is_computed_and_its_numbers_are_kept() -> None:
    setup = Setup()
    await setup.ask(replace(JOB, detail=True))
    assert (await setup.ask()).was_kept


class MixedPool(InProcessPool):
    """One worker on a GPU, which computes all, and one on the CPU."""

    def status(self) -> list[DeviceStatus]:
        (cpu,) = super().status()
        return [cpu, replace(cpu, device="cuda:0", device_name="H100")]


async def test_a_result_of_any_device_of_the_pool_is_used() -> None:
    setup = Setup(pool=MixedPool(default=replace(eval_result(), device="cuda:0", device_name="H100")))
    await setup.ask()
    assert (await setup.ask()).was_kept


async def test_a_verdict_of_nobody_knows_which_device_is_not_kept() -> None:
    setup = Setup(pool=MixedPool(default=NonFiniteResult("NaN")))
    with pytest.raises(NonFiniteResult):
        await setup.ask()
    assert not setup.kept.results
