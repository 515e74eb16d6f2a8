"""Pools of misbehaving workers, started; closed after each test, with no process left."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.workers.processes.pools import cpus, misbehaving_pool
from workers.processes.process_pool import ProcessPool


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    """One worker that misbehaves as its jobs say."""
    async with misbehaving_pool() as started:
        yield started


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[ProcessPool]:
    """Two of them."""
    async with misbehaving_pool(cpus(2)) as started:
        yield started
