"""Speed and memory beside the published package, soma-models: one table.

    python -m benchmarks.speed [--sizes small,75m,full] [--rows cold,warm,...] [--pairs 3] [--json FILE]
        [--device cpu] [--precision float32]

Every measurement is a fresh process, and the two peers take turns; a cell is the median of its pairs and a
ratio is the median of the ratios within the pairs, so that a busy machine slows both. A cold start is
timed from the start of the process until its loss is read; files are in the page cache for both. A third kind of
process only reads the encrypted file into memory, with as many threads as there are cores.
The matrix rate is that of torch's float32 product alone (with --precision tf32 in TF32), in the model's shapes,
measured in each process behind its evaluations; operations are counted with the causal half of attention only.
The precision is ours; soma-models has float32 and TF32, and is given TF32 with --precision tf32. On a GPU the peak of
memory is that of the card, as torch counts it. torch's threads wait as they come, spinning: best for soma-models on an
idle machine, ruinous on a busy one; ours do not meet (see `benchmarks.threads`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.device_options import add_device_options, check_device_options
from tests.recipe import SMALL_CONFIG, TEST_KEY, golden_full_size, make_data, write_weights

OURS, PUBLISHED = PEERS = ("soma-eval", "soma-models")
READING = "reading"
WEIGHTS_RECIPE = {"scheme": "scaled", "seed": 7, "gain": 1.0}


@dataclass(frozen=True)
class Workload:
    """Weights of one size on some bytes of text."""

    size: str
    config: Mapping[str, int]
    num_bytes: int

    @property
    def name(self) -> str:
        return f"{self.size}, {self.num_bytes:,} bytes"


SIZES: dict[str, list[Workload]] = {
    "small": [Workload("small", SMALL_CONFIG, 1024), Workload("small", SMALL_CONFIG, 70_000)],
    "75m": [
        Workload(
            "76 M parameters",
            {**SMALL_CONFIG, "embedding_dim": 1024, "pwff_hidden_dim": 4096, "num_layers": 6, "num_heads": 8},
            8192,
        )
    ],
    "full": [Workload("full V1", golden_full_size().config, 2048)],
}


@dataclass(frozen=True)
class Run:
    """What one process did."""

    peer: str
    encrypted: bool
    loss: float
    cold_seconds: float
    import_seconds: float
    ready_seconds: float
    first_seconds: float
    warm_seconds: float | None
    peak_bytes: int
    rate: float | None


@dataclass(frozen=True)
class Row:
    """A line of the table: what it takes from a run, and how it is printed."""

    title: str
    encrypted: bool
    value: Callable[[Run, Workload], float]
    text: Callable[[float], str]
    more_is_better: bool = False


def seconds(value: float) -> str:
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1e3:.0f} ms"
        if value >= 0.01
        else f"{value * 1e3:.1f} ms"
    )


def size(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e3:,.0f} KB"


ROWS: dict[str, Row] = {
    "cold": Row("cold start to first loss", False, lambda run, _: run.cold_seconds, seconds),
    "warm": Row("warm evaluation", False, lambda run, _: run.warm_seconds or 0.0, seconds),
    "share": Row(
        "warm, share of the matrix rate",
        False,
        lambda run, work: num_operations(work) / (run.warm_seconds or 1.0) / (run.rate or 1.0),
        lambda value: f"{value:.0%}",
        more_is_better=True,
    ),
    "encrypted": Row("cold start, encrypted", True, lambda run, _: run.cold_seconds, seconds),
    "ready": Row("weights ready", False, lambda run, _: run.ready_seconds, seconds),
    "ready-encrypted": Row("weights ready, encrypted", True, lambda run, _: run.ready_seconds, seconds),
    "memory": Row("peak memory", False, lambda run, _: float(run.peak_bytes), size),
    "memory-encrypted": Row("peak memory, encrypted", True, lambda run, _: float(run.peak_bytes), size),
    "disk": Row("weights on disk", False, lambda _, work: 4.0 * num_parameters(work.config), size),
}
"""What is taken from one run each."""
DECRYPTION = "decryption"
"""What encrypted weights take beyond plain ones and reading the file: taken from three runs."""


def main() -> int:
    arguments = parse()
    workloads = [work for size in arguments.sizes for work in SIZES[size]]
    console = Console()
    console.width = max(console.width, 100)
    results: list[tuple[Workload, list[Run]]] = []
    with kept_or_temporary(arguments.weights_dir) as folder, progress_bar(console) as progress:
        kinds = kinds_needed(arguments.rows)
        peers = {False: list(PEERS), True: [*PEERS, READING]}
        total = sum(len(peers[kind]) for kind in kinds) * len(workloads) * arguments.pairs
        task = progress.add_task("", total=total)
        for work in workloads:
            runs = []
            for pair in range(arguments.pairs):
                for encrypted in kinds:
                    for peer in peers[encrypted][:: 1 if pair % 2 == 0 else -1]:
                        progress.update(task, description=f"{work.name}: {peer}{', encrypted' * encrypted}")
                        device = arguments.device, arguments.precision
                        runs.append(measure(peer, work, folder, encrypted, *device))
                        progress.advance(task)
            results.append((work, runs))
    title = f"{arguments.device}, {arguments.precision}; medians of {arguments.pairs} interleaved pairs"
    console.print(table(results, arguments.rows, title))
    if arguments.json:
        found = {"device": arguments.device, "precision": arguments.precision, **document(results)}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory beside soma-models.")
    parser.add_argument("--sizes", type=listed(SIZES), default=list(SIZES), help=",".join(SIZES))
    rows = [*ROWS, DECRYPTION]
    parser.add_argument("--rows", type=listed(rows), default=rows, help=",".join(rows))
    parser.add_argument("--pairs", type=int, default=3, help="how often each peer takes its turn")
    parser.add_argument(
        "--weights-dir", type=Path, help="keep the weights there, and use those that are there"
    )
    parser.add_argument("--json", type=Path, help="write every measurement to this file as well")
    add_device_options(parser)
    arguments = parser.parse_args()
    check_device_options(parser, arguments)
    return arguments


def kinds_needed(rows: list[str]) -> list[bool]:
    """Plain, encrypted or both."""
    return [False, True] if DECRYPTION in rows else sorted({ROWS[name].encrypted for name in rows})


def listed(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse_names(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return parse_names


@contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def measure(peer: str, work: Workload, folder: Path, encrypted: bool, device: str, precision: str) -> Run:
    """One fresh process of this peer, timed from its start until its first loss arrives."""
    weights = weights_file(work, folder, TEST_KEY if encrypted else None)
    data = folder / f"text-{work.num_bytes}"
    data.write_bytes(make_data({"pattern": "text", "size": work.num_bytes}))
    task = {
        "peer": peer,
        "config": dict(work.config),
        "weights": str(weights),
        "data": str(data),
        "key": TEST_KEY.hex() if encrypted else None,
        "warm": not encrypted,
        "device": device,
        "precision": precision,
    }
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed_peer", json.dumps(task)],
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline() or "null")
        cold_seconds = time.perf_counter() - start
        last = json.loads(process.stdout.readline() or "null")
    if process.returncode or first is None or last is None:
        raise SystemExit(f"{peer} failed on {work.name}")
    numbers = {name: value for name, value in {**first, **last}.items() if name != "event"}
    return Run(peer=peer, encrypted=encrypted, cold_seconds=cold_seconds, **numbers)


def weights_file(work: Workload, folder: Path, key: bytes | None) -> Path:
    """The weights of this size, made from a seed unless they are there; read once, so that they are cached."""
    path = folder / f"{work.size.replace(' ', '-')}{'.encrypted' if key else ''}.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        write_weights(partial, work.config, WEIGHTS_RECIPE, key)
        partial.rename(path)
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(8 << 20)
        while file.readinto(buffer):
            pass
    return path


def num_parameters(config: Mapping[str, int]) -> int:
    D, F, L, V = (config[name] for name in ("embedding_dim", "pwff_hidden_dim", "num_layers", "vocab_size"))
    return L * (4 * D * D + 2 * D * F + 9 * D + F) + 2 * D * V + 2 * D + V


def num_operations(work: Workload) -> float:
    """float32 additions and multiplications of the products: of the layers, causal attention, logits, SIGReg."""
    D, F, L, V = (
        work.config[name] for name in ("embedding_dim", "pwff_hidden_dim", "num_layers", "vocab_size")
    )
    T = 1024
    num_sequences = -(-work.num_bytes // T)
    rows = num_sequences * T
    attention = 2 * 2 * D * num_sequences * T * (T + 1) / 2  # q k^T and weights v, for keys up to each token
    return L * (2.0 * rows * (4 * D * D + 2 * D * F) + attention) + 2.0 * rows * D * (V + 256)


def table(results: list[tuple[Workload, list[Run]]], rows: list[str], title: str) -> Table:
    rates = [run.rate for _, runs in results for run in runs if run.rate]
    rate = f"float32 product {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s" if rates else ""
    machine = f"{os.cpu_count()} x {processor()}; {rate}"
    found = Table(title=title, caption=machine)
    found.add_column("", no_wrap=True)
    for heading in (*PEERS, "ratio"):
        found.add_column(heading, justify="right", no_wrap=True)
    for work, runs in results:
        found.add_section()
        found.add_row(f"[bold]{work.name}")
        for name in rows:
            found.add_row(*(decryption_cells(runs) if name == DECRYPTION else cells(ROWS[name], work, runs)))
    return found


def cells(row: Row, work: Workload, runs: list[Run]) -> list[str]:
    """A line: the medians of both peers, and how many times better ours is."""
    ours, theirs = (
        [row.value(run, work) for run in runs if run.peer == peer and run.encrypted == row.encrypted]
        for peer in PEERS
    )
    ratios = [b / a if not row.more_is_better else a / b for a, b in zip(ours, theirs, strict=True)]
    texts = [row.text(statistics.median(values)) for values in (ours, theirs)]
    ratio = statistics.median(ratios)
    return [f"  {row.title}", *texts, f"{ratio:.0f} x" if ratio >= 20 else f"{ratio:.2f} x"]


def decryption_cells(runs: list[Run]) -> list[str]:
    """A line: how much later encrypted weights are ready than plain ones, less the time of reading the file."""

    def ready(peer: str, encrypted: bool) -> list[float]:
        return [run.ready_seconds for run in runs if run.peer == peer and run.encrypted == encrypted]

    reading = ready(READING, True)
    texts = []
    for peer in PEERS:
        both = zip(ready(peer, True), ready(peer, False), reading, strict=True)
        texts.append(seconds(statistics.median(encrypted - plain - read for encrypted, plain, read in both)))
    return [f"  decryption alone ({seconds(statistics.median(reading))} of reading taken off)", *texts, ""]


def document(results: list[tuple[Workload, list[Run]]]) -> dict[str, Any]:
    return {
        "processor": processor(),
        "num_cores": os.cpu_count(),
        "workloads": [
            {
                "name": work.name,
                "config": dict(work.config),
                "num_bytes": work.num_bytes,
                "num_parameters": num_parameters(work.config),
                "num_operations": num_operations(work),
                "runs": [asdict(run) for run in runs],
            }
            for work, runs in results
        ],
    }


def processor() -> str:
    """The processor's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
