"""What open status pages cost the service: CPU, and the time of POST /eval beside them.

    python -m benchmarks.status_page [--pages 50] [--requests 200] [--seconds 20]

A page is what a browser does: GET /, its files, then the stream of events, all from one other process. First the
service has nothing to do, then it answers five requests a second, each with and without pages in turn. CPU is
that of the service's process alone, in percent of one core; its workers do not serve pages. At last jobs are sent, and
it is measured how long it takes from the answer of each until the page has it.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.service_overhead import request
from tests.file_server import FileServer
from tests.live_service import LiveService, live_service
from tests.recipe import encrypt, small_weights_bytes

ROUNDS = 4
NUM_JOBS = 20
REQUESTS_PER_SECOND = 5.0
ANEW = {"Cache-Control": "no-cache"}
"""Else a kept result would answer."""


class Page:
    """One open page, and what it was sent."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.news = asyncio.Event()
        self.recent = bytearray()
        """What it was sent since somebody cleared it."""

    async def watch(self, service: LiveService, opened: asyncio.Event) -> None:
        """Load the page, then read its events until cancelled; a bare socket, so that reading costs little."""
        async with httpx.AsyncClient(base_url=service.http_url, trust_env=False) as client:
            (await client.get("/")).raise_for_status()
            for name in ("status.css", "status.js", "icon.svg"):
                (await client.get(f"/status/files/{name}")).raise_for_status()
        host, port = service.http_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /status/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        try:
            while block := await reader.read(1 << 16):
                opened.set()
                self.num_bytes += len(block)
                self.recent = (self.recent + block)[-(1 << 18) :]
                self.news.set()
        finally:
            writer.close()


@asynccontextmanager
async def open_pages(service: LiveService, number: int) -> AsyncIterator[list[Page]]:
    """Pages that are open for the length of the block."""
    pages = [Page() for _ in range(number)]
    opened = [asyncio.Event() for _ in pages]
    tasks = [
        asyncio.create_task(page.watch(service, event)) for page, event in zip(pages, opened, strict=True)
    ]
    try:
        for event in opened:
            await event.wait()
        yield pages
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def idle_percent(process: psutil.Process, seconds: float) -> float:
    """Of one core, while nothing is asked for."""
    before = cpu_seconds(process)
    await asyncio.sleep(seconds)
    return 100 * (cpu_seconds(process) - before) / seconds


async def evaluations(service: LiveService, body: dict[str, Any], number: int) -> list[float]:
    """Seconds of each request, sent at a steady pace, so that something changes on each look."""
    seconds = []
    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=service.http_url, trust_env=False, timeout=60.0) as client:
        for index in range(number):
            await asyncio.sleep(began + index / REQUESTS_PER_SECOND - time.perf_counter())
            started = time.perf_counter()
            (await client.post("/eval", json=body, headers=ANEW)).raise_for_status()
            seconds.append(time.perf_counter() - started)
    return seconds


async def delays(service: LiveService, body: dict[str, Any], page: Page) -> list[float]:
    """Seconds from the answer that accepts a job until the page has been sent it."""
    seconds = []
    async with httpx.AsyncClient(base_url=service.http_url, trust_env=False, timeout=60.0) as client:
        for _ in range(NUM_JOBS):
            page.recent.clear()
            job = (await client.post("/eval", json=body, headers={"Prefer": "respond-async"})).json()
            accepted = time.perf_counter()
            while f"jobs/{job['id']}".encode() not in page.recent:
                page.news.clear()
                await page.news.wait()
            seconds.append(time.perf_counter() - accepted)
            await asyncio.sleep(0.137)
    return seconds


async def measure(service: LiveService, body: dict[str, Any], options: argparse.Namespace) -> None:
    """Measure and print."""
    process = psutil.Process(service.process.pid)
    await evaluations(service, body, 20)
    idle: dict[int, list[float]] = {0: [], options.pages: []}
    spent: dict[int, list[float]] = {0: [], options.pages: []}
    asked: dict[int, list[float]] = {0: [], options.pages: []}
    num_bytes = 0
    for _ in range(ROUNDS):
        for number in idle:
            async with open_pages(service, number) as pages:
                await asyncio.sleep(1.0)
                idle[number].append(await idle_percent(process, options.seconds / ROUNDS))
                before, started = cpu_seconds(process), time.perf_counter()
                asked[number] += await evaluations(service, body, options.requests // ROUNDS)
                busy_seconds = time.perf_counter() - started
                spent[number].append(100 * (cpu_seconds(process) - before) / busy_seconds)
                num_bytes += sum(page.num_bytes for page in pages)
    async with open_pages(service, 1) as (page,):
        seen = await delays(service, body, page)
    title = f"{options.pages} pages, {options.requests} requests, small model"
    table = Table("", "without pages", f"{options.pages} pages", "the pages cost", title=title)
    for name, values in (("CPU while idle, % of a core", idle), ("CPU at 5 requests/s, % of a core", spent)):
        without, with_pages = (statistics.median(each) for each in values.values())
        table.add_row(name, f"{without:.2f}", f"{with_pages:.2f}", f"{with_pages - without:+.2f}")
    for name, cut in (("POST /eval p50, ms", 49), ("POST /eval p99, ms", 98)):
        without, with_pages = (1000 * statistics.quantiles(each, n=100)[cut] for each in asked.values())
        table.add_row(name, f"{without:.1f}", f"{with_pages:.1f}", f"{with_pages / without:.3f} times")
    console = Console()
    console.print(table)
    console.print(f"sent to pages: {num_bytes / 1e6:.1f} MB")
    console.print(f"a job is on the page after {statistics.median(seen):.2f} s, {max(seen):.2f} s at most")


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process itself, without its children."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Run it against a service of its own."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--pages", type=int, default=50)
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--seconds", type=float, default=20.0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        published = Path(folder) / "files"
        published.mkdir()
        with FileServer(published).running() as files, live_service(Path(folder) / "service") as service:
            body = request(files, encrypt(small_weights_bytes()))
            asyncio.run(measure(service, body, given))


if __name__ == "__main__":
    main()
