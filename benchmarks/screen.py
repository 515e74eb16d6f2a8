r"""Pieces per second of POST /screen against one POST /score for each piece, on one service.

    python -m benchmarks.screen [--pieces 96] [--rounds 5] [--memory 10000] [--distinct 1000] [--layers 24 --width 512]
                                [--full WEIGHTS]
    python -m benchmarks.screen --service-model 76M --models 3 --sizes 100 --pieces 6 --scored 2 --rounds 3
    python -m benchmarks.screen --service-model full --full WEIGHTS --models 1 --sizes 100 --pieces 2 --scored 2 \
                                --rounds 2

The small model: three models, a hundred targets, pieces of 100 bytes and of 1 KiB; blocks of both kinds alternate, so
that whatever else runs on the machine meets both. `/score` is asked by one client, one piece after the other, each
published by a file server as the network has it. Seconds of a CPU are those of the service and its workers: they
depend less on what else runs. Then its memory and that of the command over many pieces with one model, and, by the
bare runner, a larger model, where only the shape of the forward pass counts.

With another --service-model than the small one, the service is compared with that one alone. The full one takes the
weights that `benchmarks.full_size --weights` makes and keeps.
"""

import argparse
import base64
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as workers have it

import base58
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from service.cli.encryption import commitment_of
from tests.file_server import FileServer
from tests.live_service import LiveService, live_service
from tests.recipe import TEST_KEY, encrypt, make_data, small_weights_bytes
from workers.v1 import Model, ModelConfig, ModelRunner

NUM_TARGETS = 100
LARGE = ModelConfig(embedding_dim=512, pwff_hidden_dim=2048, num_layers=24)
"""76 million parameters."""
KEY = base58.b58encode(TEST_KEY).decode()


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The models of one size."""

    name: str
    count: int
    full: Path | None
    """The weights of full V1."""

    @property
    def config(self) -> ModelConfig:
        """Of each of them."""
        return {"small": ModelConfig.small(), "76M": LARGE, "full": ModelConfig()}[self.name]

    def flags(self, folder: Path) -> list[str]:
        """Of a service for them, after those of the small model."""
        if self.name == "small":
            return []
        if self.name == "full":
            return ["--full-model"]
        (folder / "large.json").write_text(
            json.dumps(
                {name: getattr(LARGE, name) for name in ("embedding_dim", "pwff_hidden_dim", "num_layers")}
            )
        )
        return ["--full-model", "--architecture", str(folder / "large.json")]

    def publish(self, files: FileServer) -> list[dict[str, Any]]:
        """Their manifests; encrypted, but for those of full size."""
        if self.name == "full":
            assert self.full is not None
            (files.folder / "full").symlink_to(self.full.absolute())
            return [manifest(files, "full")] * self.count
        found = []
        for i in range(self.count):
            files.publish(f"m{i}", encrypt(self._weights(i)))
            found.append({**manifest(files, f"m{i}"), "decryption_key": KEY})
        return found

    def _weights(self, number: int) -> bytes:
        if self.name == "small":
            return small_weights_bytes({"scheme": "scaled", "seed": 7 + number})
        torch.manual_seed(number)
        return Model(LARGE).save_bytes()


def manifest(files: FileServer, name: str) -> dict[str, Any]:
    """Of a file in the server's folder."""
    commitment = commitment_of(files.folder / name)
    return {"url": f"{files.base_url}/{name}", "checksum": commitment.checksum, "size": commitment.size}


class Screened:
    """A service, its models and targets, and pieces that it has not seen."""

    def __init__(self, files: FileServer, service: LiveService, models: ServedModels) -> None:
        self._files = files
        self._url = service.http_url
        self._connection = http.client.HTTPConnection(service.http_url.removeprefix("http://"))
        self._process = psutil.Process(service.process.pid)
        self._models = models.publish(files)
        generator = np.random.default_rng(0)
        self._targets = [
            {
                "embedding": generator.normal(size=models.config.embedding_dim).tolist(),
                "distance_threshold": 0.5,
            }
            for _ in range(NUM_TARGETS)
        ]
        self._num_made = 0

    def score(self, size: int, count: int) -> None:
        """A POST /score for each piece."""
        for piece in self._new_pieces(size, count):
            self._files.publish("piece", piece)
            data = manifest(self._files, "piece")
            body = {
                **{f"data_{name}": data[name] for name in ("url", "checksum", "size")},
                "model_manifests": self._models,
                "target_embedding": self._targets[0]["embedding"],
                "seed": 0,
            }
            self._post("/score", body)

    def screen(self, size: int, count: int) -> int:
        """One POST /screen for all pieces; returns the lines."""
        pieces = self.encoded(size, count)
        lines = self._post("/screen", {"pieces": pieces, "models": self._models, "targets": self._targets})
        assert json.loads(lines.splitlines()[-1])["summary"]["pieces"] == count
        return lines.count(b"\n")

    def cpu_seconds(self) -> float:
        """Of the service and its workers, since they started."""
        times = [each.cpu_times() for each in (self._process, *self._process.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def memory_in_one_request(self, pieces: list[dict[str, str]]) -> "Memory":
        """Of the service, while it answers one request of these pieces, with one model."""
        body = {"pieces": pieces, "models": self._models[:1], "targets": self._targets}
        self._connection.request("POST", "/screen", json.dumps(body), {"Content-Type": "application/json"})
        with closing(self._connection.getresponse()) as response:
            return memory_while(response, len(pieces), self._process)

    def memory_of_command(self, pieces: list[dict[str, str]], folder: Path) -> "Memory":
        """Of `soma-eval screen`, which is given these pieces and asks this service."""
        files = {name: folder / f"{name}.json" for name in ("models", "targets")}
        files["models"].write_text(json.dumps(self._models[:1]))
        files["targets"].write_text(json.dumps(self._targets))
        files["data"] = folder / "pieces.jsonl"
        files["data"].write_text("".join(json.dumps(each) + "\n" for each in pieces))
        flags = [part for name, path in files.items() for part in (f"--{name}", str(path))]
        command = [sys.executable, "-m", "service.cli.main", "screen", "--url", self._url, *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            return memory_while(process.stdout, len(pieces), psutil.Process(process.pid))

    def encoded(self, size: int, count: int) -> list[dict[str, str]]:
        """Pieces that it has not seen, as requests have them."""
        return [{"data": base64.b64encode(each).decode()} for each in self._new_pieces(size, count)]

    def _new_pieces(self, size: int, count: int) -> list[bytes]:
        first = self._num_made
        self._num_made += count
        return [
            make_data({"pattern": "hash", "size": size, "seed": seed}) for seed in range(first, first + count)
        ]

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        with closing(self._connection.getresponse()) as response:
            content = response.read()
            assert response.status == 200, content[:500]
            return content


@dataclass(frozen=True, slots=True)
class Memory:
    """The resident set of a process after each tenth of the lines that it writes, in MiB."""

    tenths: list[float]
    seconds: float

    def __str__(self) -> str:
        return f"{' '.join(f'{each:.0f}' for each in self.tenths)} MiB after each tenth, {self.seconds:.0f} s"


def memory_while(lines: IO[bytes] | http.client.HTTPResponse, count: int, process: psutil.Process) -> Memory:
    """Read all lines."""
    started = time.perf_counter()
    tenths = []
    for number, _line in enumerate(lines, 1):
        if number % (count // 10) == 0 and number <= count:
            tenths.append(process.memory_info().rss / 2**20)
    assert len(tenths) == 10, f"only {number} lines"
    return Memory(tenths, time.perf_counter() - started)


def measured(screened: Screened, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of a CPU."""
    wall, cpu = time.perf_counter(), screened.cpu_seconds()
    work()
    return time.perf_counter() - wall, screened.cpu_seconds() - cpu


def compare(screened: Screened, size: int, count: int, num_scored: int, rounds: int, table: Table) -> None:
    """Rows for pieces of this size: medians of the rounds, per piece."""
    screened.score(size, 1)
    screened.screen(size, 1)
    alone, together = [], []
    for _ in range(rounds):
        alone.append(measured(screened, lambda: screened.score(size, num_scored)))
        together.append(measured(screened, lambda: screened.screen(size, count)))
    per_alone = [statistics.median(each) / num_scored for each in zip(*alone, strict=True)]
    per_together = [statistics.median(each) / count for each in zip(*together, strict=True)]
    for name, (wall, cpu) in (("/score each", per_alone), ("/screen", per_together)):
        table.add_row(f"{size:,} bytes", name, f"{1 / wall:.3g}", f"{1000 * wall:.1f}", f"{1000 * cpu:.1f}")
    wall, cpu = (a / b for a, b in zip(per_alone, per_together, strict=True))
    table.add_row("", "times", f"{wall:.2f}", "", f"{cpu:.2f}", end_section=True)


def compare_runner(config: ModelConfig, model: Any, runner: ModelRunner, count: int, table: Table) -> None:
    """Rows for the bare runner: pieces of 100 bytes, alone and together, alternating."""
    pieces = [make_data({"pattern": "hash", "size": 100, "seed": seed}) for seed in range(count)]

    def alone() -> None:
        for piece in pieces:
            list(runner.eval_batches(model, piece, 0, range(1)))

    def together() -> None:
        list(runner.eval_pieces(model, pieces, 0))

    together()
    seconds: dict[str, list[float]] = {"each alone": [], "together": []}
    for _ in range(3):
        for name, work in (("each alone", alone), ("together", together)):
            started = time.process_time()
            work()
            seconds[name].append((time.process_time() - started) / count)
    size = sum(parameter.numel() for parameter in model.model.parameters())
    for name, times in seconds.items():
        table.add_row(f"{size / 1e6:,.0f} M", name, f"{min(times):.3f}", f"{statistics.median(times):.3f}")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--service-model", choices=["small", "76M", "full"], default="small")
    options.add_argument("--models", type=int, default=3)
    options.add_argument("--sizes", type=int, nargs="+", default=[100, 1024], help="bytes of a piece")
    options.add_argument("--pieces", type=int, default=96, help="of one screen")
    options.add_argument(
        "--scored", type=int, default=12, help="pieces of a round that are scored one by one"
    )
    options.add_argument("--rounds", type=int, default=5, help="0 measures the memory alone")
    options.add_argument("--memory", type=int, default=10_000, help="pieces; 0 leaves this out")
    options.add_argument(
        "--distinct", type=int, default=0, help="of these pieces; the others are the same again; 0: all are"
    )
    options.add_argument("--layers", type=int, default=24)
    options.add_argument("--width", type=int, default=512, help="0 leaves the larger model out")
    options.add_argument("--full", type=Path, help="weights of full V1, as benchmarks.full_size keeps them")
    given = options.parse_args()
    if given.service_model == "full" and given.full is None:
        options.error("--service-model full needs --full WEIGHTS")
    console = Console()
    models = ServedModels(given.service_model, given.models, given.full)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with (
            FileServer(path).running() as files,
            live_service(path / "service", *models.flags(path)) as service,
        ):
            screened = Screened(files, service, models)
            title = f"{models.name} model, {models.count} of them, {NUM_TARGETS} targets"
            table = Table("pieces", "", "pieces/s", "ms", "CPU ms", title=title)
            for size in given.sizes if given.rounds else ():
                compare(screened, size, given.pieces, given.scored, given.rounds, table)
            if table.rows:
                console.print(table)
            if given.memory and models.name == "small":
                screened.screen(100, 100)
                pieces = screened.encoded(100, given.distinct or given.memory)
                pieces = [pieces[i % len(pieces)] for i in range(given.memory)]
                in_one_request = screened.memory_in_one_request(pieces)
                console.print(f"service, {given.memory:,} pieces in one request: {in_one_request}")
                of_command = screened.memory_of_command(pieces, path)
                console.print(f"command, {given.memory:,} pieces: {of_command}")
    if models.name != "small":
        return
    table = Table("parameters", "pieces of 100 bytes", "least CPU s", "median CPU s", title="the bare runner")
    if given.width:
        config = ModelConfig(given.width, 4 * given.width, given.layers)
        runner = ModelRunner(config)
        compare_runner(config, runner.load(Model(config).save_bytes()), runner, 8, table)
    if given.full:
        runner = ModelRunner()
        compare_runner(runner.config, runner.load(given.full), runner, 4, table)
    if table.rows:
        console.print(table)


if __name__ == "__main__":
    main()
