"""What durable jobs hold, and what they cost. Real services, the small model on CPUs, a file server on loopback.

    python -m benchmarks.durability [--kills 100] [--shared-jobs 200] [--pairs 100] [--only kills|shared|cost]

kills   A service under load is killed with SIGKILL at random moments, started again, and so on. Every request has an
        Idempotency-Key and is sent again until it is accepted. Lost: accepted, and no result at the end. Doubled: a
        second job for one key. Downloaded again: a request for a file that lay verified in the cache at the kill.
shared  Two services on one PostgreSQL; one is killed with half of the jobs still to do.
cost    A job, and a POST /eval that waits, with nothing kept (--state-url off), with SQLite and with PostgreSQL:
        the three take turns.

PostgreSQL is that of PGHOST, PGPORT and PGUSER (127.0.0.1, 5432, postgres); what needs it is left out without one.
"""

import argparse
import base64
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from rich.table import Table

from service.checksum import checksum_of
from tests.file_server import FileServer
from tests.live_service import SMALL_AND_LOCAL, LiveService, live_service
from tests.postgres import postgres_database, url_of
from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, make_data, make_weights, safetensors_bytes

ASYNC = {"Prefer": "respond-async"}
DATA = base64.b64encode(make_data({"pattern": "text", "size": 40_000})).decode()
SHORT_DATA = base64.b64encode(make_data({"pattern": "text", "size": 1024})).decode()
NUM_CLIENTS = 4
SEEDS_PER_FILE = 3

console = Console()


class Publisher:
    """Publishes weights files that differ, and tells which were asked for."""

    def __init__(self, server: FileServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._template = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
        self.name_of: dict[str, str] = {}
        """Checksum -> the file's name."""

    def request(self, number: int, data: str = DATA) -> dict[str, Any]:
        """The request of that number: every few share a weights file, and each has its own seed."""
        file = number // SEEDS_PER_FILE
        name = f"{file}.safetensors"
        with self._lock:
            tensors = dict(self._template)
            tensors["predictor.bias"] = tensors["predictor.bias"] + file * 1e-3
            content = safetensors_bytes({key: value.astype("float32") for key, value in tensors.items()})
            checksum = checksum_of(content)
            if checksum not in self.name_of:
                self._server.publish(name, content)
                self.name_of[checksum] = name
        url = f"{self._server.base_url}/{name}"
        return {"data": data, "weights_url": url, "weights_checksum": checksum, "seed": number}

    def num_requests(self) -> int:
        """So far."""
        return len(self._server.requests)

    def asked_since(self, index: int) -> list[str]:
        """The names of the files asked for after the first `index` requests."""
        return [path.strip("/") for path in self._server.requests[index:]]


class Clients:
    """Threads that submit jobs without end, each again until it is accepted."""

    def __init__(self, publisher: Publisher) -> None:
        self.accepted: dict[int, str] = {}
        """Number of the request -> id of its job."""
        self.url = ""
        """Of the service that lives now; empty while there is none."""
        self._publisher = publisher
        self._lock = threading.Lock()
        self._next = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Let each have its last request accepted."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number, self._next = self._next, self._next + 1
            request = self._publisher.request(number, DATA if number % 10 == 0 else SHORT_DATA)
            while (job_id := self._submit(number, request)) is None:
                time.sleep(0.05)
            self.accepted[number] = job_id

    def _submit(self, number: int, request: dict[str, Any]) -> str | None:
        if not self.url:
            return None
        try:
            headers = {**ASYNC, "Idempotency-Key": f"request-{number}"}
            response = httpx.post(
                f"{self.url}/eval", json=request, headers=headers, timeout=30, trust_env=False
            )
        except httpx.TransportError:
            return None
        if response.status_code == 202:
            return str(response.json()["id"])
        assert response.json()["retryable"], response.text
        return None


def kill(service: LiveService) -> None:
    """End it with no chance to do anything."""
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()


def measure_kills(num_kills: int, folder: Path, publisher: Publisher) -> Table:
    """Kill under load; what was lost, doubled, downloaded again."""
    moments = random.Random(0)
    clients = Clients(publisher)
    flags = (*SMALL_AND_LOCAL, "--queue-size", "16", "--max-finished-jobs", "1000000")
    downloaded_again = num_during_start = 0
    verified: set[str] = set()
    mark = 0
    for index in range(num_kills):
        service = LiveService(folder, *flags)
        if moments.random() < 0.1:
            time.sleep(moments.uniform(0, 3))
            num_during_start += 1
        else:
            service.wait_until_ready()
            clients.url = service.http_url
            time.sleep(moments.uniform(0, 5))
        clients.url = ""
        kill(service)
        downloaded_again += len(verified & set(publisher.asked_since(mark)))
        blobs = {path.name for path in (folder / "data/blobs").glob("*")}
        verified = {name for checksum, name in publisher.name_of.items() if checksum in blobs}
        mark = publisher.num_requests()
        if (index + 1) % 10 == 0:
            console.print(f"{index + 1} kills, {len(clients.accepted)} jobs accepted")
    with live_service(folder, *flags) as service, service.client() as client:
        clients.url = service.http_url
        clients.finish()
        ended = wait_for_all(client, clients.accepted.values())
        downloaded_again += len(verified & set(publisher.asked_since(mark)))
        seeds = Counter(
            job["result"]["provenance"]["seed"] for job in all_jobs(client) if job["state"] == "succeeded"
        )
        num_jobs = len(list(all_jobs(client)))
    states = Counter(state_of(job) for job in ended)
    table = Table("kills at random moments", "", title="kill -9 under load, SQLite")
    table.add_row("kills (during the start)", f"{num_kills} ({num_during_start})")
    table.add_row("jobs accepted", str(len(clients.accepted)))
    for state, number in sorted(states.items()):
        table.add_row(state, str(number))
    table.add_row("lost", str(len(clients.accepted) - len(ended)))
    table.add_row("doubled", str(num_jobs - len(clients.accepted) + sum(n - 1 for n in seeds.values())))
    table.add_row("verified files downloaded again", str(downloaded_again))
    return table


def wait_for_all(client: httpx.Client, job_ids: Any) -> list[dict[str, Any]]:
    """Each of these jobs as it has ended; those that are not there are left out."""
    ended = []
    for job_id in job_ids:
        while (response := client.get(f"/jobs/{job_id}")).status_code != 404:
            job = response.json()
            if response.status_code == 200 and job["finished_at"] is not None:
                ended.append(job)
                break
            time.sleep(0.1)
    return ended


def all_jobs(client: httpx.Client) -> Iterator[dict[str, Any]]:
    """Every job that the service lists."""
    after = None
    while True:
        page = client.get("/jobs", params={"limit": 100, **({"after": after} if after else {})}).json()
        yield from page["jobs"]
        after = page["next"]
        if after is None:
            return


def state_of(job: dict[str, Any]) -> str:
    """With the code of its error."""
    return f"{job['state']} ({job['error']['code']})" if job["error"] else str(job["state"])


def measure_shared(num_jobs: int, folder: Path, publisher: Publisher, state_url: str) -> Table:
    """Two services on one PostgreSQL, one of them killed."""
    flags = ("--queue-size", str(num_jobs + 1), "--state-key-file", str(folder / "shared.key"))
    environment = {"SOMA_EVAL_STATE_URL": state_url}
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(live_service(folder / name, *flags, environment=environment))
            for name in ("one", "other")
        )
        client = stack.enter_context(other.client())
        job_ids = []
        for number in range(num_jobs):
            url = (one if number % 2 else other).http_url
            response = httpx.post(
                f"{url}/eval",
                json=publisher.request(number, SHORT_DATA),
                headers=ASYNC,
                timeout=60,
                trust_env=False,
            )
            job_ids.append(response.json()["id"])
        while (
            len(client.get("/jobs", params={"state": "succeeded", "limit": 100}).json()["jobs"])
            < num_jobs / 4
        ):
            time.sleep(0.1)
        kill(one)
        killed_at = time.monotonic()
        ended = wait_for_all(client, job_ids)
        seconds = time.monotonic() - killed_at
        num_taken_over = other.output().count("going on with a job")
        num_listed = len(list(all_jobs(client)))
    states = Counter(state_of(job) for job in ended)
    table = Table("two services, one killed", "", title="one PostgreSQL")
    table.add_row("jobs", str(num_jobs))
    for state, number in sorted(states.items()):
        table.add_row(state, str(number))
    table.add_row("taken over by the other", str(num_taken_over))
    table.add_row("lost", str(num_jobs - len(ended)))
    table.add_row("doubled", str(num_listed - num_jobs))
    table.add_row("seconds from the kill to the last result", f"{seconds:.1f}")
    return table


def measure_cost(
    num_pairs: int, folder: Path, publisher: Publisher, state_urls: dict[str, str | None]
) -> Table:
    """Milliseconds of jobs and of requests that wait, by where jobs are kept; the services take turns."""
    seconds: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        clients = {}
        for name, url in state_urls.items():
            environment = {"SOMA_EVAL_STATE_URL": url} if url else {}
            flags = ("--max-kept-results", "0")  # which would answer the second of equal requests
            service = stack.enter_context(live_service(folder / name, *flags, environment=environment))
            clients[name] = stack.enter_context(service.client())
        body = publisher.request(0, SHORT_DATA)
        for pair in range(num_pairs + 3):  # the first ones warm up
            for name, client in clients.items():
                for what, measure in _MEASURED.items():
                    measured = measure(client, body)
                    if pair >= 3:
                        seconds.setdefault((name, what), []).append(measured)
    table = Table(
        "p50 in ms (less that of off)", "job to its result", "job to its 202", "POST /eval that waits"
    )
    table.title = f"{num_pairs} interleaved rounds, small model, 1 KiB"
    for name in state_urls:
        cells = []
        for what in _MEASURED:
            own, off = seconds[name, what], seconds["off", what]
            added = statistics.median(a - b for a, b in zip(own, off, strict=True))
            cells.append(f"{statistics.median(own) * 1000:.1f} ({added * 1000:+.1f})")
        table.add_row(name, *cells)
    return table


def measure_job(client: httpx.Client, body: dict[str, Any]) -> float:
    """From the request to the event that has its result."""
    started = time.perf_counter()
    location = client.post("/eval", json=body, headers=ASYNC).headers["location"]
    with client.stream("GET", f"{location}/events") as stream:
        last = [line for line in stream.iter_lines() if line.startswith("event: ")][-1]
    assert last == "event: succeeded"
    return time.perf_counter() - started


def measure_accepted(client: httpx.Client, body: dict[str, Any]) -> float:
    """From the request to the 202."""
    started = time.perf_counter()
    location = client.post("/eval", json=body, headers=ASYNC).headers["location"]
    seconds = time.perf_counter() - started
    while client.get(location).json()["finished_at"] is None:
        time.sleep(0.01)
    return seconds


def measure_waiting(client: httpx.Client, body: dict[str, Any]) -> float:
    """From the request to its answer."""
    started = time.perf_counter()
    assert client.post("/eval", json=body).status_code == 200
    return time.perf_counter() - started


_MEASURED = {"job": measure_job, "accepted": measure_accepted, "waiting": measure_waiting}


@contextmanager
def new_postgres_url() -> Iterator[str | None]:
    """Of a new database; None where no server answers."""
    with ExitStack() as stack:
        try:
            name = stack.enter_context(postgres_database())
        except pytest.skip.Exception as reason:
            console.print(f"without PostgreSQL: {reason}")
            yield None
            return
        yield url_of(name)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--shared-jobs", type=int, default=200)
    options.add_argument("--pairs", type=int, default=100)
    options.add_argument("--only", choices=("kills", "shared", "cost"))
    chosen = options.parse_args()

    def part(name: str, measure: Callable[[Path, Publisher], Table | None]) -> None:
        if chosen.only not in (None, name):
            return
        with tempfile.TemporaryDirectory() as folder:
            served = Path(folder) / "served"
            served.mkdir()
            with FileServer(served).running() as server:
                if (table := measure(Path(folder), Publisher(server))) is not None:
                    console.print(table)

    def shared(folder: Path, publisher: Publisher) -> Table | None:
        with new_postgres_url() as url:
            return None if url is None else measure_shared(chosen.shared_jobs, folder, publisher, url)

    def cost(folder: Path, publisher: Publisher) -> Table:
        with new_postgres_url() as url:
            kept = {"SQLite": None, **({"PostgreSQL": url} if url else {})}
            return measure_cost(chosen.pairs, folder, publisher, {"off": "off", **kept})

    part("kills", lambda folder, publisher: measure_kills(chosen.kills, folder, publisher))
    part("shared", shared)
    part("cost", cost)


if __name__ == "__main__":
    main()
