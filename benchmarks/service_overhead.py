"""What the service adds to the bare runner: POST /eval against ModelRunner.eval, small model, 1 KiB, warm.

    python -m benchmarks.service_overhead [--pairs 200]

Pairs are interleaved: one evaluation in this process, one through HTTP, scheduler, cache and worker process.
The client is the standard library's, on one connection: what a client costs is none of the service's doing.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import base58
from rich.console import Console
from rich.table import Table

from service.cli.encryption import commitment_of
from tests.file_server import FileServer
from tests.live_service import live_service
from tests.recipe import TEST_KEY, encrypt, make_data, small_weights_bytes
from workers.v1 import ModelConfig, ModelRunner

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as workers have it

DATA = make_data({"pattern": "text", "size": 1024})


def measure(pairs: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each bare evaluation, and of each request."""
    weights = encrypt(small_weights_bytes())
    runner = ModelRunner(ModelConfig.small(), device="cpu")
    bare, served = [], []
    with (
        FileServer(folder).running() as files,
        live_service(folder / "service") as service,
        contextlib.closing(http.client.HTTPConnection(service.http_url.removeprefix("http://"))) as client,
    ):
        body = json.dumps(request(files, weights)).encode()
        post(client, body)
        runner.eval(DATA, weights, seed=0, decryption_key=TEST_KEY)
        for _ in range(pairs):
            started = time.perf_counter()
            runner.eval(DATA, weights, seed=0, decryption_key=TEST_KEY)
            between = time.perf_counter()
            post(client, body)
            bare.append(between - started)
            served.append(time.perf_counter() - between)
    return bare, served


def request(files: FileServer, weights: bytes) -> dict[str, object]:
    """POST /eval for the weights, which the file server publishes."""
    url = files.publish("weights.enc", weights)
    promised = commitment_of(files.folder / "weights.enc")
    return {
        "data": base64.b64encode(DATA).decode(),
        "weights_url": url,
        "weights_checksum": promised.checksum,
        "weights_size": promised.size,
        "decryption_key": base58.b58encode(TEST_KEY).decode(),
    }


def post(client: http.client.HTTPConnection, body: bytes) -> None:
    """One request that must succeed."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"}
    client.request("POST", "/eval", body, headers)
    with client.getresponse() as response:
        response.read()
        assert response.status == 200


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=200)
    pairs = options.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        bare, served = measure(pairs, Path(folder))
    table = Table("milliseconds", "p50", "p99", title=f"small model, 1 KiB, {pairs} interleaved pairs")
    added = [b - a for a, b in zip(bare, served, strict=True)]
    for name, seconds in (("bare runner", bare), ("POST /eval", served), ("added", added)):
        cuts = statistics.quantiles(seconds, n=100)
        table.add_row(name, f"{cuts[49] * 1000:.1f}", f"{cuts[98] * 1000:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
