"""Pools of workers on the device, and jobs for them."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.gpu.testbed import SEED, Testbed
from tests.recipe import TEST_KEY
from workers.pool import WorkerPool, create_pool
from workers.types import EvalJob, EvalResult


@asynccontextmanager
async def started_pool(testbed: Testbed, devices: Sequence[str]) -> AsyncIterator[WorkerPool]:
    """For the length of the block."""
    pool = create_pool(devices, small_model=not testbed.is_gpu, precision=testbed.precision)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


def job(testbed: Testbed, name: str, content: bytes) -> EvalJob:
    """The encrypted weights under a name of their own, so that a worker takes them for others; on this data."""
    data = testbed.folder / f"data-{len(content)}"
    if not data.exists():
        data.write_bytes(content)
    return EvalJob(
        str(testbed.encrypted),
        name,
        str(data),
        len(content),
        SEED,
        TEST_KEY,
        data_checksum=hashlib.sha256(content).hexdigest(),
    )


def bits(result: EvalResult) -> tuple[Any, ...]:
    """All that must not differ."""
    return result.loss, result.cross_entropy, result.sig_reg, result.embedding.tobytes()


def first_device(testbed: Testbed) -> str:
    """As a worker names it."""
    return "cuda:0" if testbed.is_gpu else "cpu"
