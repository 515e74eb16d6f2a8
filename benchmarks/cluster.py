"""The pool on a Ray cluster of this machine: bits, speed, bytes moved, memory of the head, and deaths.

    python -m benchmarks.cluster [scaling] [memory] [deaths] [fuzz]     (all of them without a name)
        [--rounds 3] [--batches 40] [--mib 64 256 1024 2048] [--deaths 20] [--frames 1000000]

scaling: one evaluation on 1, 2 and 3 nodes of one thread each, beside as many workers of the pool of
one machine. memory: weights of growing size are sent to two nodes, and what the head takes meanwhile is sampled.
deaths: while evaluations run, worker processes, actors, raylets and whole nodes are killed and frozen at random; how
long until the pool gives each one up, and whether every evaluation was right, or failed with a typed error. fuzz:
changed frames of each kind. Exits with 1 when bits differ, an answer is wrong or late, or a process is left.
"""

import argparse
import asyncio
import hashlib
import logging
import math
import os
import random
import signal
import statistics
import tempfile
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import base58
import psutil

from benchmarks.demo_cluster import NUM_BATCHES, until_ready, write_job
from tests.ray_cluster import LocalCluster, LocalNode, local_cluster
from tests.workers.cluster.frames import mutations
from tests.workers.processes.pools import is_alive
from workers.cluster.cluster_pool import ClusterPool
from workers.cluster.hello import Hello
from workers.cluster.messages import ClusterConfig, FromConnector, ToConnector
from workers.errors import WorkerError
from workers.message_codec import Decoder, MalformedMessage
from workers.messages import FromWorker, ToWorker
from workers.pool import WorkerPool, create_pool
from workers.types import EvalJob, EvalResult, WorkerConfig

MIB = 1 << 20
BATCHES_UNDER_LOAD = 10
"""Of each of the evaluations in which something dies."""
LATE_SECONDS = 30.0
"""Beyond the undisturbed time of both evaluations, after which an answer counts as late."""
FUZZED = {
    "worker to head": FromWorker,
    "connector to service": FromConnector,
    "head to worker": ToWorker,
    "service to connector": ToConnector,
    "hello of a node": Hello,
}
"""What travels between the processes of a cluster."""


def cluster_pool(cluster: LocalCluster, folder: Path) -> ClusterPool:
    """As a service starts it, with its limits; the small model and one thread per worker."""
    config = ClusterConfig(cluster.address, "cpu", False, str(folder), 64 << 30, "workers.worker.main")
    return ClusterPool(config, WorkerConfig("", small_model=True, num_threads=1))


def bits(result: EvalResult) -> bytes:
    """Everything that must not differ."""
    return repr((result.loss, result.cross_entropy, result.sig_reg)).encode() + result.embedding.tobytes()


async def best_of(pool: WorkerPool, job: EvalJob, num_rounds: int) -> tuple[float, bytes]:
    """Seconds of the best round after a first one, and the bits."""
    result, best = await pool.evaluate(job), float("inf")
    for _ in range(num_rounds):
        began = time.perf_counter()
        result = await pool.evaluate(job)
        best = min(best, time.perf_counter() - began)
    return best, bits(result)


async def scaling(num_rounds: int, num_batches: int) -> bool:
    """Whether all agreed to the bit."""
    print(
        f"{num_batches} batches, small model, one thread per worker, {os.cpu_count()} cores, best of {num_rounds}"
    )
    print(
        "nodes    seconds    this machine's pool    to one node: here    there    same bits    bytes to nodes"
    )
    first: tuple[float, float, bytes] | None = None
    agreed = True
    with tempfile.TemporaryDirectory() as name, local_cluster() as cluster:
        folder = Path(name)
        job = write_job(folder, num_batches)
        cluster.add_node("1")
        pool = cluster_pool(cluster, folder / "nodes")
        await pool.start()
        try:
            for n in (1, 2, 3):
                if n > 1:
                    await asyncio.to_thread(cluster.add_node, str(n))
                await until_ready(pool, n)
                seconds, found = await best_of(pool, job, num_rounds)
                local = create_pool(["cpu"] * n, small_model=True, num_threads=1)
                await local.start()
                local_seconds, expected = await best_of(local, job, num_rounds)
                await local.close()
                first = first or (seconds, local_seconds, expected)
                same = found == expected == first[2]
                agreed = agreed and same
                moved = sum(file.stat().st_size for file in (folder / "nodes").rglob("*") if file.is_file())
                ratios = f"{first[0] / seconds:20.2f} {first[1] / local_seconds:8.2f}"
                print(
                    f"{n:5} {seconds:10.2f} {local_seconds:22.2f} {ratios} {'yes' if same else 'NO':>12} {moved:17,}"
                )
        finally:
            await pool.close()
    return agreed


async def memory(sizes_mib: Sequence[int]) -> bool:
    """Weights of growing size; none of them is valid, which is found out on the node, once it has the file."""
    print(
        "weights      sent to 2 nodes in    most memory of: service    Ray connector    head's object store"
    )
    with tempfile.TemporaryDirectory() as name, local_cluster() as cluster:
        folder = Path(name)
        job = write_job(folder)
        for each in "ab":
            cluster.add_node(each)
        pool = cluster_pool(cluster, folder / "nodes")
        await pool.start()
        try:
            for num_mib in sizes_mib:
                weights = await asyncio.to_thread(random_file, folder / "large", num_mib)
                seconds, peaks = await peak_memory(cluster, send(pool, replace(job, **weights)))
                shown = "".join(f"{peak / MIB:17,.0f} MiB" for peak in peaks)
                print(f"{num_mib:5} MiB {seconds:18.1f} s {shown}")
        finally:
            await pool.close()
    return True


def random_file(path: Path, num_mib: int) -> dict[str, typing.Any]:
    """Weights that nobody accepts, as fields of a job."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("wb") as file:
        for _ in range(num_mib):
            block = b"\xff" * 8 + os.urandom(MIB - 8)
            digest.update(block)
            file.write(block)
    checksum = base58.b58encode(digest.digest()).decode()
    return {"weights_path": str(path), "weights_checksum": checksum, "weights_size": num_mib * MIB}


async def send(pool: ClusterPool, job: EvalJob) -> None:
    """Two evaluations at once, so that both nodes are sent the weights; both fail."""
    await asyncio.gather(*(pool.evaluate(replace(job, seed=n)) for n in (1, 2)), return_exceptions=True)


async def peak_memory(
    cluster: LocalCluster, work: typing.Coroutine[typing.Any, typing.Any, None]
) -> tuple[float, list[int]]:
    """Seconds that it takes, and the most that service, connector and the head's object store take meanwhile."""
    ours = psutil.Process()
    connector = next(each for each in ours.children() if "workers.cluster.connector" in each.cmdline())
    peaks = [0, 0, 0]
    running = asyncio.create_task(work)
    began = time.perf_counter()
    while not running.done():
        store = cluster.nodes[0].raylet().memory_full_info()
        now = [ours.memory_full_info().uss, connector.memory_full_info().uss, store.rss - store.uss]
        peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
        await asyncio.sleep(0.05)
    return time.perf_counter() - began, peaks


class GivenUp(logging.Handler):
    """Notes when the pool gives a worker up."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log."""
        if record.name.endswith("running_worker") and record.levelno >= logging.WARNING:
            self.at.append((time.monotonic(), record.getMessage()))


def _worker(node: LocalNode) -> list[psutil.Process]:
    return node.workers()


def _actor(node: LocalNode) -> list[psutil.Process]:
    return node.actors()


def _raylet(node: LocalNode) -> list[psutil.Process]:
    return [node.raylet()]


def _all(node: LocalNode) -> list[psutil.Process]:
    return node.processes()


VICTIMS: dict[str, Callable[[LocalNode], list[psutil.Process]]] = {
    "worker process": _worker,
    "actor": _actor,
    "raylet": _raylet,
    "whole node": _all,
}


async def deaths(number: int) -> bool:
    """Whether every evaluation was right or failed with a typed error, in time, and nothing was left."""
    noticed: dict[str, list[float]] = {}
    counts = {"right": 0, "wrong": 0}
    extra: list[float] = []
    handler = GivenUp()
    logging.getLogger("workers").addHandler(handler)
    with tempfile.TemporaryDirectory() as name, local_cluster(tuned=False) as cluster:
        folder = Path(name)
        job = write_job(folder, BATCHES_UNDER_LOAD)
        for each in "ab":
            cluster.add_node(each)
        pool = cluster_pool(cluster, folder / "nodes")
        await pool.start()
        seconds, expected = await best_of(pool, job, 1)
        kinds = [(what, how) for what in VICTIMS for how in (signal.SIGKILL, signal.SIGSTOP)]
        plan = (kinds * (number // len(kinds) + 1))[:number]
        random.shuffle(plan)
        for what, how in plan:
            handler.at.clear()
            running = [asyncio.create_task(pool.evaluate(job)) for _ in range(2)]
            await asyncio.sleep(random.uniform(0.2, seconds))
            began = time.monotonic()
            node = random.choice(cluster.nodes[1:])
            victims = VICTIMS[what](node)
            workers = node.workers()
            for victim in victims:
                victim.send_signal(how)
            results = await asyncio.gather(*running, return_exceptions=True)
            extra.append(time.monotonic() - began - 2 * seconds)
            for result in results:
                kind = "wrong"
                if isinstance(result, EvalResult):
                    kind = "right" if bits(result) == expected else "wrong"
                elif isinstance(result, WorkerError):
                    kind = type(result).__name__
                counts[kind] = counts.get(kind, 0) + 1
            await asyncio.to_thread(mend, cluster, node)
            await until_ready(pool, 2)
            label = f"{what} {'killed' if how == signal.SIGKILL else 'frozen'}"
            after = handler.at[0][0] - began if handler.at else float("nan")
            noticed.setdefault(label, []).append(after)
            print(f"  {label:24} given up after {after:5.1f} s; answers {extra[-1]:+.1f} s", flush=True)
            if [
                each
                for each in workers
                if is_alive(each.pid) and each.pid not in {s.pid for s in pool.status()}
            ]:
                print(f"A WORKER OF {label} IS LEFT")
                counts["wrong"] += 1
        known = [process for node in cluster.nodes for process in node.processes()]
        await pool.close()
    print(f"{number} deaths under load, two nodes, with the limits of a service and Ray's own health checks")
    for label, times in sorted(noticed.items()):
        # No time is known where all was done before.
        known_times = [each for each in times if not math.isnan(each)] or [math.nan]
        span = f"{min(known_times):5.1f} to {max(known_times):5.1f} s"
        print(f"  {label:24} {len(times):2} times, given up after {span}")
    print(f"  answers: {counts}")
    print(
        f"  beyond the undisturbed time of both: median {statistics.median(extra):.1f} s, most {max(extra):.1f} s"
    )
    left = [process for process in known if is_alive(process.pid)]
    late = sum(each > LATE_SECONDS for each in extra)
    print(f"  later than {LATE_SECONDS:g} s: {late}; processes left: {len(left)}")
    return not counts["wrong"] and not late and not left


def mend(cluster: LocalCluster, node: LocalNode) -> None:
    """Let what was frozen go on, and replace a node that is gone by another."""
    node.thaw()
    time.sleep(3.0)  # what was given up ends
    if node.process.poll() is not None or not node.processes("raylet"):
        node.end()
        cluster.nodes.remove(node)
        cluster.add_node(node.name)


def fuzz(num_frames: int) -> bool:
    """Whether none of so many frames crashed the decoder or made a class that is not ours."""
    decoded = 0
    began = time.perf_counter()
    for kind, allowed in FUZZED.items():
        ours = typing.get_args(allowed) or (allowed,)
        before = decoded
        for frame in mutations(random.Random(), allowed, num_frames // len(FUZZED)):
            try:
                messages = Decoder(allowed).feed(frame)
            except MalformedMessage:
                continue
            decoded += len(messages)
            if any(type(message) not in ours for message in messages):
                print("A FOREIGN CLASS WAS BUILT")
                return False
        print(f"  {kind}: {decoded - before:,} were messages")
    seconds = time.perf_counter() - began
    print(
        f"{num_frames:,} changed frames in {seconds:.0f} s: {decoded:,} were messages, all others were refused"
    )
    return True


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=["scaling", "memory", "deaths", "fuzz", []])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=NUM_BATCHES)
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--frames", type=int, default=1_000_000)
    options = parser.parse_args()
    parts = options.parts or ["scaling", "memory", "deaths", "fuzz"]
    good = True
    for part in parts:
        print(f"== {part}", flush=True)
        match part:
            case "scaling":
                good = asyncio.run(scaling(options.rounds, options.batches)) and good
            case "memory":
                good = asyncio.run(memory(options.mib)) and good
            case "deaths":
                good = asyncio.run(deaths(options.deaths)) and good
            case "fuzz":
                good = fuzz(options.frames) and good
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
