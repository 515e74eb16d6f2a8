"""Many clients against one small-model service: a queue that overflows, clients that leave, and who waits for whom.

    python -m benchmarks.load [--clients 200] [--queue-size 8] [--bursts 10] [--leavers 100]

Clients post at once, all from one other process; each waits for its answer. The next burst comes when the last
answer is there. Then clients that close their connection at a random moment; after each, how long until the
service holds no request any more. Then a competition of four models, alone and beside three clients that ask for one
evaluation after another. At last requests whose publishers never answer, more than there are downloads at once,
and beside them an evaluation of weights that are here and one of weights that are not.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.service_overhead import request
from service.checksum import checksum_of
from tests.file_server import FileServer
from tests.live_service import LiveService, live_service
from tests.misbehaving_server import MisbehavingServer, silent
from tests.recipe import encrypt, golden_cases, make_data, small_weights_bytes

GOLDEN = golden_cases()["small-70000"]
NO_CACHE = {"Cache-Control": "no-cache"}
"""Every request is to be computed, and none shared with others that ask the same."""


async def overflow(
    service: LiveService, body: dict[str, object], num_clients: int
) -> tuple[list[tuple[int, float]], int]:
    """Status and seconds of each of the clients' requests; how many answers were wrong.

    The clients are bare sockets, connected beforehand, so that their own cost does not count much.
    """
    host, port = service.http_url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /eval HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\nCache-Control: no-cache\r\n"
    message = f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + content
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(num_clients)]

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, float, bytes]:
        started = time.perf_counter()
        writer.write(message)
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        seconds = time.perf_counter() - started
        rest = await reader.read()
        writer.close()
        return status, seconds, rest

    answers = await asyncio.gather(*(one(*connection) for connection in connections))
    losses = {
        json.loads(rest.partition(b"\r\n\r\n")[2])["loss"] for status, _, rest in answers if status == 200
    }
    refused = [rest for status, _, rest in answers if status == 429 and b"retry-after" in rest.lower()]
    num_wrong = num_clients - len(refused) - sum(status == 200 for status, _, _ in answers)
    return [(status, seconds) for status, seconds, _ in answers], num_wrong + max(0, len(losses) - 1)


async def leave(service: LiveService, body: dict[str, Any], num_leavers: int, longest: float) -> list[float]:
    """Seconds from each client's leaving until the service works for nobody."""
    free_after = []
    generator = random.Random(1)
    async with httpx.AsyncClient(base_url=service.http_url, trust_env=False, timeout=60.0) as watcher:
        for i in range(num_leavers):
            async with httpx.AsyncClient(
                base_url=service.http_url, trust_env=False, headers=NO_CACHE
            ) as leaver:
                posting = asyncio.create_task(leaver.post("/eval", json={**body, "seed": i}))
                await asyncio.sleep(generator.uniform(0.0, longest))
                posting.cancel()
                await asyncio.wait([posting])
            left = time.perf_counter()
            while await is_busy(watcher):
                await asyncio.sleep(0.005)
            free_after.append(time.perf_counter() - left)
    return free_after


async def beside_single_evaluations(
    service: LiveService, single: dict[str, Any], competition: dict[str, Any]
) -> tuple[float, float, int]:
    """Seconds of a competition alone and beside three busy clients, and how many evaluations these had meanwhile."""
    num_answered = 0
    async with httpx.AsyncClient(
        base_url=service.http_url, trust_env=False, timeout=600.0, headers=NO_CACHE
    ) as client:

        async def ask_again_and_again() -> None:
            nonlocal num_answered
            while True:
                (await client.post("/eval", json=single)).raise_for_status()
                num_answered += 1

        alone = await seconds_of(client, "/score", competition)
        asking = [asyncio.create_task(ask_again_and_again()) for _ in range(3)]
        await asyncio.sleep(0.5)
        num_before = num_answered
        beside = await seconds_of(client, "/score", competition)
        num_beside = num_answered - num_before
        await cancel(asking)
    return alone, beside, num_beside


async def beside_hanging_publishers(
    service: LiveService, known: dict[str, Any], new: dict[str, Any], num_hanging: int
) -> tuple[float, float]:
    """Seconds of an evaluation of weights that are here, and of weights that are not, beside hanging downloads."""
    async with MisbehavingServer(silent, tls=False) as server:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=service.http_url, trust_env=False, timeout=600.0, limits=limits, headers=NO_CACHE
        ) as client:
            (await client.post("/eval", json=known)).raise_for_status()
            bodies = [{**known, "weights_url": server.url(f"/{i}")} for i in range(num_hanging)]
            hanging = [asyncio.create_task(client.post("/eval", json=body)) for body in bodies]
            while len(server.requests) < min(16, num_hanging):
                await asyncio.sleep(0.01)
            here = await seconds_of(client, "/eval", known)
            not_here = await seconds_of(client, "/eval", new)
            await cancel(hanging)
    return here, not_here


async def seconds_of(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> float:
    """How long the answer takes."""
    started = time.perf_counter()
    (await client.post(path, json=body)).raise_for_status()
    return time.perf_counter() - started


async def cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Leave."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def competition_of(body: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Four times the same weights, as a competition."""
    model = {name.removeprefix("weights_"): body[name] for name in body if name.startswith("weights_")}
    return {
        "data_url": body["data_url"],
        "data_checksum": checksum_of(data),
        "data_size": len(data),
        "model_manifests": [{**model, "decryption_key": body["decryption_key"]}] * 4,
        "target_embedding": [1.0] * 16,
        "seed": 0,
    }


async def is_busy(watcher: httpx.AsyncClient) -> bool:
    """Whether a request or a worker is at work."""
    text = (await watcher.get("/metrics")).text
    return "soma_eval_workers_busy 0.0" not in text or "soma_eval_requests_admitted 0.0" not in text


def milliseconds(seconds: list[float]) -> list[str]:
    """p50, p99 and the largest."""
    if len(seconds) < 2:
        return [f"{s * 1000:.0f}" for s in seconds] or ["-"]
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return [f"{cuts[49] * 1000:.0f}", f"{cuts[98] * 1000:.0f}", f"{max(seconds) * 1000:.0f}"]


def memory_mib(service: LiveService) -> float:
    """Of the server's own process."""
    return float(psutil.Process(service.process.pid).memory_info().rss) / 2**20


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--queue-size", type=int, default=8)
    options.add_argument("--bursts", type=int, default=10)
    options.add_argument("--leavers", type=int, default=100)
    given = options.parse_args()
    console = Console()
    with (
        tempfile.TemporaryDirectory() as folder,
        FileServer(Path(folder)).running() as files,
        live_service(Path(folder) / "service", "--queue-size", str(given.queue_size)) as service,
    ):
        body = request(files, encrypt(small_weights_bytes()))
        data = make_data(GOLDEN.data)
        long_body = {**body, "data": None, "data_url": files.publish("data.bin", data)}
        with service.client() as client:
            batch_seconds = client.post("/eval", json=long_body).json()["timings"]["eval_seconds"]
        before = memory_mib(service)
        answers: list[tuple[int, float]] = []
        slowest_of_burst: list[float] = []
        wrong = 0
        for _ in range(given.bursts):
            some, some_wrong = asyncio.run(overflow(service, long_body, given.clients))
            answers, wrong = answers + some, wrong + some_wrong
            refused = [seconds for status, seconds in some if status == 429]
            slowest_of_burst.append(statistics.quantiles(refused, n=100, method="inclusive")[98])
        counts = Counter(status for status, _ in answers)
        table = Table(
            "answer",
            "count",
            "p50 ms",
            "p99 ms",
            "max ms",
            title=f"{given.bursts} times {given.clients} clients, queue {given.queue_size}",
        )
        for status in sorted(counts):
            table.add_row(
                str(status), str(counts[status]), *milliseconds([s for c, s in answers if c == status])
            )
        console.print(table)
        console.print(
            f"99th percentile of the 429s of one burst: median {statistics.median(slowest_of_burst) * 1000:.0f} ms"
        )
        console.print(
            f"wrong or missing answers: {wrong}; server memory {before:.0f} -> {memory_mib(service):.0f} MiB"
        )
        free_after = asyncio.run(leave(service, long_body, given.leavers, 2 * batch_seconds))
        table = Table("", "p50 ms", "p99 ms", "max ms", title=f"{given.leavers} clients that leave")
        table.add_row("free again after", *milliseconds(free_after))
        table.add_row("one evaluation of 5 batches", f"{batch_seconds * 1000:.0f}")
        console.print(table)
        print_contention(console, service, long_body, data)
        print_hanging(console, Path(folder) / "hanging", files, body)


def print_contention(console: Console, service: LiveService, body: dict[str, Any], data: bytes) -> None:
    """Who waits for whom at the workers."""
    competition = competition_of(body, data)
    alone, beside, num_beside = asyncio.run(beside_single_evaluations(service, body, competition))
    console.print(
        f"a competition of 4: {alone:.1f} s alone, {beside:.1f} s beside 3 clients, who had {num_beside} answers"
    )


def print_hanging(console: Console, folder: Path, files: FileServer, body: dict[str, Any]) -> None:
    """Who waits for whom at the downloads."""
    new = {**body, "weights_url": files.publish("new.enc", encrypt(small_weights_bytes()))}
    with live_service(folder) as service:
        here, not_here = asyncio.run(beside_hanging_publishers(service, body, new, 20))
    console.print(
        f"beside 20 downloads that hang: {here:.2f} s for weights that are here, {not_here:.2f} s for others"
    )


if __name__ == "__main__":
    main()
