"""The network's numbers through real workers: plain, encrypted, and however the batches are shared out."""

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from tests.recipe import (
    SMALL_CONFIG,
    TEST_KEY,
    GoldenCase,
    encrypt,
    golden_cases,
    make_data,
    make_weights,
    safetensors_bytes,
)
from tests.workers.processes.pools import pids
from workers.errors import DecryptionFailed, FileUnreadable, NonFiniteResult, WeightsInvalid
from workers.pool import WorkerPool, create_pool
from workers.types import BatchScore, EvalJob, EvalResult, WorkerConfig
from workers.v1 import running_mean
from workers.worker.runner import Runner

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = {
    case.name: case
    for case in golden_cases().values()
    if case.config == SMALL_CONFIG and (case.max_seq_len, case.batch_size) == (1024, 16)
}
ENCRYPTED = [name for name in CASES if name not in ("small-1-mib", "small-70000")]
"""Those of at most two batches: what is decrypted once is evaluated like any other weights."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pools() -> AsyncIterator[dict[int, WorkerPool]]:
    """One and three CPU workers with one thread each."""
    pools = {n: create_pool(["cpu"] * n, small_model=True, num_threads=1) for n in (1, 3)}
    await asyncio.gather(*(pool.start() for pool in pools.values()))
    yield pools
    await asyncio.gather(*(pool.close() for pool in pools.values()))


def write_job(case: GoldenCase, folder: Path, key: bytes | None = None) -> EvalJob:
    """The case as files and a job; with a key, the weights are encrypted."""
    clear = safetensors_bytes(make_weights(case.config, case.weights))
    weights, data = folder / "weights", folder / "data"
    weights.write_bytes(encrypt(clear, key) if key else clear)
    data.write_bytes(make_data(case.data))
    checksum = f"{case.weights} {key!r}"
    return EvalJob(str(weights), checksum, str(data), case.data["size"], case.seed, key)


def same_bits(one: EvalResult, other: EvalResult) -> bool:
    return (one.loss, one.cross_entropy, one.sig_reg, one.embedding.tobytes()) == (
        (other.loss, other.cross_entropy, other.sig_reg, other.embedding.tobytes())
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(pytest.param(name, None, id=f"{name}-plain") for name in CASES if name != "small-1-mib"),
        *(pytest.param(name, TEST_KEY, id=f"{name}-encrypted", marks=pytest.mark.slow) for name in ENCRYPTED),
    ],
)
async def test_golden(pools: dict[int, WorkerPool], name: str, key: bytes | None, tmp_path: Path) -> None:
    case = CASES[name]
    result = await pools[1].evaluate(write_job(case, tmp_path, key))
    assert result.loss == pytest.approx(case.loss, rel=1e-5)
    tolerance = (1e-4 if case.attends_to_future else 2e-5) * max(1.0, float(np.abs(case.embedding).max()))
    np.testing.assert_allclose(result.embedding, case.embedding, rtol=0, atol=tolerance)
    assert result.attends_to_future == case.attends_to_future
    assert set(result.versions) == {"torch", "soma-arrgen"}
    (worker,) = pools[1].status()
    assert (worker.kind, worker.versions) == (result.kind, result.versions)
    assert worker.device_name.endswith(", 1 thread")


async def test_the_same_bits_on_any_number_of_workers(pools: dict[int, WorkerPool], tmp_path: Path) -> None:
    """Four batches, the last of which is short: three workers have unequal shares."""
    case = CASES["small-70000"]
    job = write_job(replace(case, data={**case.data, "size": 50_000}), tmp_path)
    one, three = [await pool.evaluate(job) for pool in pools.values()]
    assert one.num_batches == 4
    assert same_bits(one, three)


@pytest.mark.slow
async def test_the_same_bits_for_every_way_to_split_an_evaluation(tmp_path: Path) -> None:
    num_batches = 4
    case = CASES["small-70000"]
    data = {**case.data, "size": (num_batches - 1) * 16 * 1024 + 1}
    job = write_job(replace(case, data=data), tmp_path)
    runners = [Runner(WorkerConfig("cpu", small_model=True)) for _ in range(2)]
    for runner in runners:
        runner.load(job, lambda: None)
    found = set()
    for cuts in itertools.product([False, True], repeat=num_batches - 1):
        edges = [0, *(index + 1 for index, is_cut in enumerate(cuts) if is_cut), num_batches]
        ranges = [range(start, stop) for start, stop in itertools.pairwise(edges)]
        scores: list[BatchScore] = []
        for number, batches in enumerate(random.Random(str(cuts)).sample(ranges, len(ranges))):
            scores += runners[number % 2].evaluate(job, batches, lambda: None)
        mean = running_mean(sorted(scores, key=lambda score: score.index))
        found.add((mean.loss, mean.cross_entropy, mean.sig_reg, mean.embedding.tobytes()))
    assert len(found) == 1


async def test_a_wrong_key_is_refused_though_the_weights_are_resident(
    pools: dict[int, WorkerPool], tmp_path: Path
) -> None:
    job = write_job(CASES["small-short"], tmp_path, TEST_KEY)
    await pools[1].evaluate(job)
    with pytest.raises(DecryptionFailed):
        await pools[1].evaluate(replace(job, decryption_key=bytes(32)))
    with pytest.raises(WeightsInvalid):
        await pools[1].evaluate(replace(job, decryption_key=None))


async def test_nan_in_the_weights_is_refused(pools: dict[int, WorkerPool], tmp_path: Path) -> None:
    recipe = {"scheme": "shift", "seed": 7, "offset": float("nan")}
    with pytest.raises(NonFiniteResult):
        await pools[1].evaluate(write_job(replace(CASES["small-short"], weights=recipe), tmp_path))


@pytest.mark.parametrize("missing", ["weights", "data"])
async def test_a_missing_file_is_the_machines_trouble(
    pools: dict[int, WorkerPool], missing: str, tmp_path: Path
) -> None:
    known = pids(pools[1])
    job = write_job(CASES["small-short"], tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileUnreadable) as raised:
        await pools[1].evaluate(replace(job, weights_checksum=f"no {missing}"))
    assert str(tmp_path) not in raised.value.detail
    assert pids(pools[1]) == known


PARENT = """
import asyncio, pathlib, sys
import workers.pool
from tests.workers.processes.pools import job, misbehaving_pool

async def main():
    async with misbehaving_pool() as pool:
        result = await pool.evaluate(job("good", pathlib.Path(sys.argv[1])))
    print(result.num_batches, "torch" in sys.modules)

asyncio.run(main())
"""


async def test_the_parent_never_imports_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "10 False\n"


async def test_pieces_have_the_numbers_that_each_has_alone(
    pools: dict[int, WorkerPool], tmp_path: Path
) -> None:
    case = CASES["small-short"]
    alone = write_job(case, tmp_path)
    pieces = tuple(make_data({"pattern": "hash", "size": size, "seed": size}) for size in (5, 1024, 3000))
    of_pieces = EvalJob.of_pieces(
        (*pieces, make_data(case.data)),
        weights_path=alone.weights_path,
        weights_checksum=alone.weights_checksum,
        seed=case.seed,
    )
    results = await pools[3].evaluate_pieces(of_pieces)
    last = results[-1]
    assert isinstance(last, EvalResult)
    assert last.loss == pytest.approx((await pools[1].evaluate(alone)).loss, rel=1e-6)
    assert last.loss == pytest.approx(case.loss, rel=1e-5)
    assert [result.num_sequences for result in results if isinstance(result, EvalResult)] == [1, 1, 3, 1]
