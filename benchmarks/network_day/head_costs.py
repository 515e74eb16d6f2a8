"""What the service's event loop spends on a submission: measured on a running service, and on the codec alone.

A service on the small model answers competitions of one and of three models; the processor time of its main process,
which neither loads nor computes, is what its event loop takes. Scores of batches are timed apart, with embeddings as
long as those of V1, decoded twice, as a cluster's are: what the connector sends, and the worker's frames in it.

    python -m benchmarks.network_day.head_costs
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.load import NO_CACHE, competition_of
from benchmarks.network_day.service_times import HeadCosts
from benchmarks.service_overhead import DATA, request
from tests.file_server import FileServer
from tests.live_service import LiveService, live_service
from tests.recipe import encrypt, small_weights_bytes
from workers.cluster.messages import Frames, FromConnector
from workers.message_codec import Decoder, encode
from workers.messages import BatchDone
from workers.types import BatchScore
from workers.v1 import running_mean

NUM_BATCHES = 64
_EMBEDDING_DIM = 2048


def measure(num_requests: int = 40) -> HeadCosts:
    """Seconds of a processor. Takes half a minute."""
    with (
        tempfile.TemporaryDirectory() as name,
        FileServer(Path(name)).running() as files,
        live_service(Path(name) / "service") as service,
    ):
        body = request(files, encrypt(small_weights_bytes()))
        body["data_url"] = files.publish("data.bin", DATA)
        one, three = (
            _seconds_per_request(service, _competition(body, number), num_requests) for number in (1, 3)
        )
    per_evaluation = max(0.0, (three - one) / 2)
    return HeadCosts(one - per_evaluation, per_evaluation, seconds_per_batch())


def _competition(body: dict[str, Any], num_models: int) -> dict[str, Any]:
    whole = competition_of(body, DATA)
    return {**whole, "model_manifests": whole["model_manifests"][:num_models]}


def _seconds_per_request(service: LiveService, body: dict[str, Any], number: int) -> float:
    process = psutil.Process(service.process.pid)
    with service.client(headers=NO_CACHE) as client:
        for _ in range(3):  # the first one downloads
            client.post("/score", json=body).raise_for_status()
        before, began = _processor_seconds(process), time.perf_counter()
        for seed in range(number):
            client.post("/score", json={**body, "seed": seed}).raise_for_status()
        used, passed = _processor_seconds(process) - before, time.perf_counter() - began
        idle_before = _processor_seconds(process)
        time.sleep(2.0)
        idle = (_processor_seconds(process) - idle_before) / 2.0
    return (used - idle * passed) / number


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def bytes_per_batch() -> int:
    """Of one score, from the connector to the service."""
    return len(_frames()) // NUM_BATCHES


def seconds_per_batch() -> float:
    """Decode the scores of an evaluation and fold them, divided by their number."""
    frames = _frames()

    def decode_and_fold() -> None:
        scores = []
        for relayed in Decoder(FromConnector).feed(frames):
            scores += [message.score for message in Decoder().feed(relayed.frames)]
        running_mean(scores)

    return _best_of(decode_and_fold) / NUM_BATCHES


def _frames() -> bytes:
    embedding = np.random.default_rng(0).standard_normal(_EMBEDDING_DIM).astype(np.float32)
    scores = (BatchScore(index, 5.5, 1.0, embedding, False) for index in range(NUM_BATCHES))
    return b"".join(encode(Frames(1, encode(BatchDone(1, score)))) for score in scores)


def _best_of(work: Callable[[], None], rounds: int = 20) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best


def main() -> None:
    """Print what belongs into `service_times`."""
    costs = measure()
    print(
        f"event loop: {costs.per_submission * 1000:.1f} ms a submission, {costs.per_evaluation * 1000:.1f} ms an "
        f"evaluation, {costs.per_batch * 1000:.3f} ms a batch, whose score has {bytes_per_batch():,} bytes"
    )
    print(f"a request of POST /score has {len(json.dumps(_example())):,} bytes")


def _example() -> dict[str, Any]:
    model = {
        "url": "https://publisher.example/weights" + "x" * 40,
        "checksum": "x" * 44,
        "size": 4_840_000_000,
    }
    return {
        "data_url": model["url"],
        "data_checksum": model["checksum"],
        "data_size": 10_000,
        "model_manifests": [{**model, "decryption_key": "x" * 44}] * 3,
        "target_embedding": [0.0123456] * _EMBEDDING_DIM,
        "seed": 0,
    }


if __name__ == "__main__":
    main()
