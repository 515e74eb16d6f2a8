"""Everything that only a real GPU can answer, in one call; on a CPU the same code with the small model.

    python -m benchmarks.gpu [numbers|time|service ...] [--json FILE]
    python -m benchmarks.gpu --device cpu

Each step runs in a process of its own: one that crashes, hangs or runs out of memory is reported with its reason, and
the next one begins. The most valuable come first, until the budget is used up. Weights at full size (plain,
encrypted, F16: 12 GB on the disk) are made from a seed at the start. Exits with 1 when a number is wrong or the
service does not hold, with 3 when a step failed, with 2 when there is no such device; a goal that need not hold, such
as one of speed, changes no exit code. docs/gpu.md says what each row decides.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.campaign import StepResult, run_steps
from benchmarks.gpu.plan import PARTS, STEPS, Step
from benchmarks.gpu.report import document, exit_code, table
from benchmarks.gpu.testbed import Testbed
from workers.errors import WorkerError
from workers.processes.devices import count_gpus

CARD_SECONDS = 720.0
"""The default budget: about what all three parts take on one card."""


def main() -> int:
    options = parse()
    if trouble := device_trouble(options.device):
        print(f"benchmarks.gpu: {trouble}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no step outlives its campaign
    wanted = ["setup", *(options.parts or PARTS)]
    results: list[StepResult] = []
    began = time.monotonic()
    try:
        with kept_or_temporary(options.folder) as folder:
            steps = [step for step in STEPS if step.part in wanted]
            testbed = Testbed(options.device, folder)
            for result in run_steps(steps, testbed, options.budget_seconds, announce):
                results.append(result)
                if result.reason:
                    print(f"  {result.step.name}: {result.reason}", file=sys.stderr, flush=True)
                if options.json:  # also when this process is killed before the end
                    write_json(options, results, began)
    finally:
        results.sort(key=lambda result: ["setup", *PARTS].index(result.step.part))
        title = f"{', '.join(wanted[1:])} on {options.device}, {time.monotonic() - began:.0f} s"
        console = Console()
        console.width = max(console.width, 160)
        console.print(table(results, title))
    return exit_code(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--budget-seconds", type=float, default=CARD_SECONDS)
    parser.add_argument("--json", type=Path, help="write everything to this file as well, after each step")
    parser.add_argument("--folder", type=Path, help="keep weights and logs there, and use the weights there")
    return parser.parse_args()


def device_trouble(device: str) -> str:
    """Why nothing can be measured on this device; empty when it can."""
    if device == "cpu":
        return ""
    try:
        return "" if count_gpus() else "torch sees no GPU here; --device cpu runs the small model on the CPU"
    except WorkerError as error:
        return str(error)


@contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="soma-eval-gpu-") as name:
        yield Path(name)


def announce(step: Step) -> None:
    print(f"{step.part}: {step.name}", file=sys.stderr, flush=True)


def write_json(options: argparse.Namespace, results: list[StepResult], began: float) -> None:
    found = document(
        results,
        device=options.device,
        budget_seconds=options.budget_seconds,
        seconds=round(time.monotonic() - began, 2),
    )
    partial = options.json.with_name(options.json.name + ".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(options.json)


if __name__ == "__main__":
    sys.exit(main())
