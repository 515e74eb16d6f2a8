"""Threads of an evaluation on an idle and on a busy machine: microseconds a byte, one table.

    python -m benchmarks.threads [--sizes small,75m,75m-one,wide,full] [--busy 0,1,3] [--rounds 5] [--json FILE]

spinning  torch shares out every operation of the same evaluation among its threads, which spin while they wait
asleep    the same with OMP_WAIT_POLICY=PASSIVE
one       one thread
team      what this package does: each thread computes parts of the evaluation by itself

Each form is a process that loads the weights once and then evaluates in turns with the others, so that whatever else
the machine does meets them alike; a cell is the median of its rounds, a ratio that of the ratios within the rounds.
Beside them, that many other processes do nothing but count. `full` takes minutes, and 5 GB of disk and memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.speed import SIZES as SPEED_SIZES
from benchmarks.speed import Workload, kept_or_temporary, listed, processor, weights_file
from tests.recipe import make_data

SEED = 1
COUNTING = "while True: pass"


@dataclass(frozen=True)
class Form:
    """A way to use the cores."""

    wait_policy: str | None
    """Of OpenMP's threads; None leaves it as it comes."""
    is_shared_by_torch: bool
    num_threads: int | None = None
    """None is all."""


FORMS = {
    "spinning": Form(None, is_shared_by_torch=True),
    "asleep": Form("PASSIVE", is_shared_by_torch=True),
    "one": Form(None, is_shared_by_torch=False, num_threads=1),
    "team": Form(None, is_shared_by_torch=False),
}
SMALL, MEDIUM, FULL = SPEED_SIZES["small"][0], SPEED_SIZES["75m"][0], SPEED_SIZES["full"][0]
SIZES = {
    "small": Workload(SMALL.size, SMALL.config, 32 * 1024),
    "75m": Workload(MEDIUM.size, MEDIUM.config, 4 * 1024),
    "75m-one": Workload(MEDIUM.size, MEDIUM.config, 1024),
    "wide": Workload("two layers of full V1", {**FULL.config, "num_layers": 2}, 1024),
    "full": Workload(FULL.size, FULL.config, 1024),
}
Measured = dict[str, list[float]]
"""Form -> microseconds a byte, round by round."""


def main() -> int:
    arguments = parse()
    console = Console()
    console.width = max(console.width, 120)
    results: dict[tuple[str, int], Measured] = {}
    with kept_or_temporary(arguments.weights_dir) as folder:
        for size in arguments.sizes:
            work = SIZES[size]
            with ExitStack() as stack:
                forms = {
                    name: stack.enter_context(evaluating(form, work, folder))
                    for name, form in FORMS.items()
                    if name in arguments.forms
                }
                for num_busy in arguments.busy:
                    with counting(num_busy):
                        results[work.name, num_busy] = measure(forms, work, arguments.rounds)
    console.print(table(results))
    if arguments.json:
        rows = [{"work": work, "busy": busy, **found} for (work, busy), found in results.items()]
        arguments.json.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Threads of an evaluation on an idle and on a busy machine.")
    parser.add_argument(
        "--sizes", type=listed(SIZES), default=["small", "75m", "75m-one", "wide"], help=",".join(SIZES)
    )
    parser.add_argument("--forms", type=listed(FORMS), default=list(FORMS), help=",".join(FORMS))
    parser.add_argument(
        "--busy",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[0, 1, 3],
        help="other processes that are busy",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each form takes its turn")
    parser.add_argument(
        "--weights-dir", type=Path, help="keep the weights there, and use those that are there"
    )
    parser.add_argument("--json", type=Path, help="write every measurement to this file as well")
    return parser.parse_args()


@contextmanager
def evaluating(form: Form, work: Workload, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of this form: for each line that it reads it evaluates once, and writes the seconds that took."""
    task = {
        "config": dict(work.config),
        "weights": str(weights_file(work, folder, None)),
        "num_bytes": work.num_bytes,
        "num_threads": form.num_threads,
        "is_shared_by_torch": form.is_shared_by_torch,
    }
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    if form.wait_policy:
        environment["OMP_WAIT_POLICY"] = form.wait_policy
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.threads", "evaluate", json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def counting(num_busy: int) -> Iterator[None]:
    """Meanwhile so many processes want a core each."""
    processes = [subprocess.Popen([sys.executable, "-c", COUNTING]) for _ in range(num_busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(forms: Mapping[str, "subprocess.Popen[str]"], work: Workload, num_rounds: int) -> Measured:
    """The forms take turns, in the opposite order every other round; a first turn of each does not count."""
    found: Measured = {name: [] for name in forms}
    for number in range(num_rounds + 1):
        for name in list(forms)[:: 1 if number % 2 == 0 else -1]:
            seconds = ask(forms[name])
            if number > 0:
                found[name].append(seconds / work.num_bytes * 1e6)
    return found


def ask(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def evaluate(task: Mapping[str, Any]) -> None:
    """The life of one such process."""
    import torch

    from workers.v1 import ModelConfig, ModelRunner

    if task["is_shared_by_torch"]:
        let_torch_share()
    if task["num_threads"]:
        torch.set_num_threads(task["num_threads"])
    runner = ModelRunner(ModelConfig(**task["config"]))
    model = runner.load(task["weights"])
    data = make_data({"pattern": "text", "size": task["num_bytes"]})
    for _ in sys.stdin:
        start = time.perf_counter()
        list(runner.eval_batches(model, data, SEED, range(runner.num_batches(len(data)))))
        print(time.perf_counter() - start, flush=True)


def let_torch_share() -> None:
    """A batch goes through every operation as a whole. Attention alone is in blocks, which decide the numbers."""
    from workers.v1 import batch_scorer, forward, team

    def compute(work: Callable[[team.Team], object], _: int, check_cancelled: Callable[[], None]) -> object:
        return work(team.OneThread(check_cancelled))

    setattr(batch_scorer, "compute", compute)  # noqa: B010  it is no name of that module's own
    batch_scorer.CPU_PASS_SEQUENCES = batch_scorer.CPU_LOSS_ROWS = sys.maxsize
    forward.CPU_TILE_ELEMENTS = sys.maxsize


def table(results: Mapping[tuple[str, int], Measured]) -> Table:
    found = Table(title="microseconds a byte", caption=f"{os.cpu_count()} x {processor()}")
    names = list(next(iter(results.values())))
    for heading in ("", "others", *names, *(f"team / {name}" for name in names if name != "team")):
        found.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for (work, num_busy), measured in results.items():
        cells = [f"{statistics.median(measured[name]):.1f}" for name in names]
        for name in names:
            if name != "team" and "team" in measured:
                pairs = zip(measured["team"], measured[name], strict=True)
                cells.append(f"{statistics.median(ours / other for ours, other in pairs):.2f}")
        found.add_row(work, str(num_busy) or "", *cells)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["evaluate"]:
        evaluate(json.loads(sys.argv[2]))
    else:
        sys.exit(main())
