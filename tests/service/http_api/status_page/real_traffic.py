"""A service on this machine's processors with real traffic, for the pictures of the documents.

Two worker processes, a small model that is trained first, and evaluations, competitions and jobs, some of which
fail through the fault of each party. Workers are killed and frozen meanwhile. Nothing that the page shows is made up.
"""

import base64
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from tests.file_server import FileServer
from tests.golden_requests import KEY, absent, manifest, weights_that_give_nan
from tests.live_service import LiveService, live_service
from tests.misbehaving_server import serving_in_a_thread, slow_body
from tests.recipe import encrypt
from workers.v1 import Model, ModelConfig, SIGReg, SIGRegConfig, compute_loss, tokenize

AS_JOB = {"Prefer": "respond-async", "Cache-Control": "no-cache"}
ANEW = {"Cache-Control": "no-cache"}
NUM_CHECKPOINTS = 10
_STEPS_BETWEEN = 16
_TARGET = [1.0 if i % 2 else -1.0 for i in range(16)]
_SLOW_BYTES, _SLOW_BYTES_PER_SECOND = 80_000_000, 1_600_000
"""Of the publisher whose file is on its way when a picture is taken."""


def train_checkpoints(folder: Path) -> list[Path]:
    """The small model along a short training on Python's documentation, the first as initialised."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, sig_reg = Model(ModelConfig.small()), SIGReg(SIGRegConfig())
    sequences = tokenize(text()[:-50_000], max_seq_len=128)
    token_ids = torch.tensor([sequence.token_ids for sequence in sequences])
    targets = torch.tensor([sequence.targets for sequence in sequences])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    paths = []
    for step in range(NUM_CHECKPOINTS * _STEPS_BETWEEN):
        if step % _STEPS_BETWEEN == 0:
            paths.append(folder / f"step-{step:04}.safetensors")
            model.save(paths[-1])
        rows = torch.randint(len(sequences), (16,))
        loss, _ = compute_loss(model, sig_reg, token_ids[rows], targets[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return paths


def text() -> bytes:
    """The language reference's topics, which ship with Python."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()[:400_000]


class Traffic:
    """What validators and trainers send, and what goes wrong."""

    def __init__(self, service: LiveService, files: FileServer, checkpoints: list[Path]) -> None:
        self._service = service
        self._files = files
        self._dice = random.Random(7)
        self._models = [
            manifest(files, f"{path.stem}.enc", encrypt(path.read_bytes()), KEY) for path in checkpoints
        ]
        self._nan = weights_that_give_nan(files)
        self._damaged = manifest(files, "damaged", b"no weights")
        self._other = {**self._models[0], "url": files.publish("other", b"x" * self._models[0]["size"])}
        self._absent = absent(files)
        self._held_out = text()[-50_000:]
        self._seed = 0

    def evaluation(self, model: dict[str, Any], num_bytes: int) -> dict[str, Any]:
        """A request for POST /eval on some of the held-out text."""
        start = self._dice.randrange(len(self._held_out) - min(num_bytes, 40_000))
        data = (self._held_out * (1 + num_bytes // 10_000))[start : start + num_bytes]
        self._seed += 1
        return {
            "data": base64.b64encode(data).decode(),
            "weights_url": model["url"],
            "weights_checksum": model["checksum"],
            "weights_size": model["size"],
            "decryption_key": model["decryption_key"],
            "seed": self._seed,
        }

    def competition(self, models: list[dict[str, Any]], num_bytes: int) -> dict[str, Any]:
        """A request for POST /score with its data by URL."""
        self._seed += 1
        data = (self._held_out * (1 + num_bytes // 40_000))[:num_bytes]
        published = manifest(self._files, f"data-{num_bytes}.txt", data)
        return {
            "data_url": published["url"],
            "data_checksum": published["checksum"],
            "data_size": published["size"],
            "model_manifests": models,
            "target_embedding": _TARGET,
            "seed": self._seed,
        }

    def send(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        """One request, whatever its answer is."""
        with self._service.client() as client:
            return client.post(path, json=body, headers=headers or {})

    def one(self) -> None:
        """One request of any kind: most are good."""
        models = self._models
        model = self._dice.choice(models)
        num_bytes = self._dice.randrange(2_000, 16_000)
        no_data = {**self.competition(models[:2], 8_000), "data_url": f"{self._files.base_url}/no-data"}
        no_data["data_checksum"] = "1" * 32
        kinds: list[tuple[float, Callable[[], Any]]] = [
            (60, lambda: self.send("/eval", self.evaluation(model, num_bytes))),
            (12, lambda: self.send("/eval", {**self.evaluation(models[-1], 8_000), "seed": 1})),
            (8, lambda: self.send("/score", self.competition(self._dice.sample(models, 3), 12_000))),
            (5, lambda: self.send("/eval", self.evaluation(model, num_bytes), AS_JOB)),
            (2, lambda: self.send("/score", self.mixed_competition(), AS_JOB)),
            (3, lambda: self.send("/eval", self.evaluation(self._absent, num_bytes), AS_JOB)),
            (2, lambda: self.send("/eval", self.evaluation(self._damaged, num_bytes), AS_JOB)),
            (2, lambda: self.send("/eval", self.evaluation(self._nan, num_bytes))),
            (2, lambda: self.send("/eval", self.evaluation(self._other, num_bytes))),
            (2, lambda: self.send("/score", no_data, AS_JOB)),
            (2, lambda: self.send("/eval", {"data": "AA=="})),
        ]
        weights, senders = zip(*kinds, strict=True)
        self._dice.choices(senders, weights)[0]()

    def mixed_competition(self) -> dict[str, Any]:
        """Two good models, and three that fail, each in its own way."""
        good = self._dice.sample(self._models[4:], 2)
        return self.competition([*good, self._nan, self._damaged, self._absent], 40_000)

    def burst(self, number: int) -> None:
        """More at once than the queue takes."""
        with ThreadPoolExecutor(number) as pool:
            for _ in range(number):
                pool.submit(self.send, "/eval", self.evaluation(self._models[-1], 16_000), ANEW)

    def workers(self) -> list[psutil.Process]:
        """The worker processes of the service."""
        return psutil.Process(self._service.process.pid).children()

    def run(self, minutes: float) -> None:
        """Send for so long, with two bursts; a worker is killed at a third of it, and one frozen at two thirds."""
        start = time.monotonic()
        begins: list[tuple[float, Callable[[], Any]]] = [
            (0.05, lambda: self.send("/score", self.mixed_competition(), AS_JOB)),
            (0.25, lambda: self.burst(14)),
            (0.33, lambda: os.kill(self.workers()[0].pid, signal.SIGKILL)),
            (0.60, lambda: self.burst(12)),
            (0.65, lambda: self.send("/score", self.mixed_competition(), AS_JOB)),
            (0.67, lambda: os.kill(self.workers()[1].pid, signal.SIGSTOP)),
        ]
        while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
            if begins and share > begins[0][0]:
                begins.pop(0)[1]()
            self.one()
            print(f"\r{100 * share:.0f} %", end="", flush=True)  # noqa: T201
            time.sleep(self._dice.expovariate(1 / (2.0 + 3.0 * abs(share - 0.6))))
        print()  # noqa: T201

    def leave_work(self, slow_url: str) -> None:
        """Jobs at every stage: one whose file is on its way, one that evaluates, and some that wait."""
        self.send("/eval", {"data": "AA==", "weights_url": slow_url, "weights_size": _SLOW_BYTES}, AS_JOB)
        failing = [self._nan, self._damaged, self._absent]
        self.send("/score", self.competition([*self._models[-3:], *failing], 400_000), AS_JOB)
        self.send("/eval", self.evaluation(self._models[5], 200_000), AS_JOB)
        self.send("/eval", self.evaluation(self._models[6], 200_000), AS_JOB)


@contextmanager
def service_with_traffic(folder: Path, minutes: float) -> Iterator[tuple[LiveService, Traffic]]:
    """A service after so many minutes of traffic, with jobs under way, for the length of the block."""
    run = folder / "run-7"
    published = folder / "files"
    for each in (run, published):
        each.mkdir(parents=True)
    checkpoints = train_checkpoints(run)
    (run / "step-9999.safetensors").write_bytes(checkpoints[-1].read_bytes()[:-1000])
    (folder / "held-out.txt").write_bytes(text()[-8_000:])
    # for each of 4 connections
    slow = slow_body(bytes(_SLOW_BYTES), bytes_per_second=_SLOW_BYTES_PER_SECOND / 4)
    flags = ("--device", "cpu,cpu", "--queue-size", "10", "--cache-max-bytes", "110000000")
    with (
        FileServer(published).running() as files,
        serving_in_a_thread(slow) as slow_url,
        live_service(folder / "service", *flags) as service,
    ):
        traffic = Traffic(service, files, checkpoints)
        _watch(service, run, folder / "held-out.txt")
        traffic.run(minutes)
        traffic.leave_work(slow_url)
        yield service, traffic


def _watch(service: LiveService, run: Path, data: Path) -> None:
    command = [
        *(sys.executable, "-m", "service.cli.main", "watch", str(run), "--once", "--data", str(data)),
        *("--small-model", "--device", "cpu", "--data-dir", str(service.data_dir)),
    ]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
