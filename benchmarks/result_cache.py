"""A kept answer against the same evaluation computed: POST /eval, small model, 1 KiB, warm, one connection.

    python -m benchmarks.result_cache [--rounds 200]

Each round asks in turn: the request as it is, answered out of what is kept; with `Cache-Control: no-cache`,
so that it is computed; and GET /health, which costs the way there and back and nothing else. Both with the data in the
request and with data by URL, which is in the cache. "From admission on" is what the answer says of itself
(timings.total_seconds): without reading the request, and without the way. With --state-url, on that database.
"""

import argparse
import contextlib
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.service_overhead import DATA, request
from service.checksum import checksum_of
from tests.file_server import FileServer
from tests.live_service import live_service
from tests.recipe import encrypt, small_weights_bytes

NO_CACHE = {"Cache-Control": "no-cache"}


class Client:
    """One connection of the standard library's client: what a client costs is none of the service's doing."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self.seconds: dict[str, list[float]] = {}

    def timed(
        self, name: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Any:
        """The answer; its seconds are added to those of the name."""
        started = time.perf_counter()
        self._connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        with self._connection.getresponse() as response:
            content = response.read()
            assert response.status == 200, content
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)
        return json.loads(content)


def measure(rounds: int, folder: Path, flags: list[str]) -> dict[str, list[float]]:
    """Seconds by what was asked."""
    with (
        FileServer(folder).running() as files,
        live_service(folder / "service", *flags) as service,
        contextlib.closing(
            http.client.HTTPConnection(service.http_url.removeprefix("http://"))
        ) as connection,
    ):
        client = Client(connection)
        inline = request(files, encrypt(small_weights_bytes()))
        by_url = {
            **{name: value for name, value in inline.items() if name != "data"},
            "data_url": files.publish("data.bin", DATA),
            "data_checksum": checksum_of(DATA),
            "data_size": len(DATA),
        }
        bodies = {name: json.dumps(body).encode() for name, body in (("inline", inline), ("by URL", by_url))}
        for body in bodies.values():
            client.timed("first", "POST", "/eval", body)
        for _ in range(rounds):
            client.timed("GET /health", "GET", "/health")
            for name, body in bodies.items():
                computed = client.timed(f"computed, data {name}", "POST", "/eval", body, NO_CACHE)
                kept = client.timed(f"kept, data {name}", "POST", "/eval", body)
                assert kept["timings"]["result_cached"]
                assert not computed["timings"]["result_cached"]
                assert (kept["loss"], kept["embedding"]) == (computed["loss"], computed["embedding"])
                own = client.seconds.setdefault(f"  of it from admission on, data {name}", [])
                own.append(kept["timings"]["total_seconds"])
    del client.seconds["first"]
    return client.seconds


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--state-url")
    given = options.parse_args()
    flags = [] if given.state_url is None else ["--state-url", given.state_url]
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(given.rounds, Path(folder), flags)
    table = Table(
        "milliseconds", "p50", "p99", title=f"small model, 1 KiB, {given.rounds} interleaved rounds"
    )
    for name, each in seconds.items():
        cuts = statistics.quantiles(each, n=100)
        table.add_row(name, f"{cuts[49] * 1000:.1f}", f"{cuts[98] * 1000:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
