"""Every step of the campaign with its goals, the most valuable first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from benchmarks.gpu.tolerances import TOLERANCES
from workers.types import Precision

PARTS = ("numbers", "time", "service")


@dataclass(frozen=True)
class Goal:
    """What a row must show."""

    row: str
    """Its name, as the step gives it."""
    text: str
    must_hold: bool = True
    """Whether a row that fails is wrong; a goal of speed may be missed, as one for a precision that is opt-in."""


@dataclass(frozen=True)
class Step:
    """A module with `run(testbed, findings)`."""

    part: str
    name: str
    module: str
    seconds: float
    """After which it counts as hung: three times what it should take, or more."""
    precision: Precision = "float32"
    needs_gpu: bool = False
    goals: tuple[Goal, ...] = ()


def _golden(precision: Precision) -> Step:
    allowed = TOLERANCES[precision]
    text = f"all right: loss {allowed.loss:.0e}, embedding {allowed.embedding:.0e}, and the flag"
    return Step(
        "numbers",
        f"golden {precision}",
        "benchmarks.gpu.numbers.golden",
        90,
        precision,
        needs_gpu=precision != "float32",
        goals=(
            Goal(f"golden cases, {precision}", text),
            Goal(f"golden competitions, {precision}", f"every loss {allowed.loss:.0e}"),
        ),
    )


def _same_bits(precision: Precision) -> Step:
    allowed = TOLERANCES[precision]
    return Step(
        "numbers",
        f"same bits {precision}",
        "benchmarks.gpu.numbers.same_bits",
        90,
        precision,
        needs_gpu=precision != "float32",
        goals=(
            Goal(
                f"one evaluation against the Rust runner, {precision}",
                f"loss {allowed.loss:.0e}, embedding {allowed.embedding:.0e}",
            ),
            Goal(f"same bits twice and by ranges, {precision}", "the same bits"),
            Goal(f"same bits beside a busy process, {precision}", "the same bits"),
        ),
    )


def _batch(precision: Precision) -> Step:
    goals = {
        "float32": Goal("share of the float32 rate, float32", "at least 0.9 of cuBLAS's rate", False),
        "float32-split": Goal("float32-split beside float32", "at least 2 times as fast", False),
        "tf32": Goal("share of the tf32 rate, tf32", "at least 0.7 of the measured TF32 rate", False),
    }
    return Step(
        "time",
        f"batch {precision}",
        "benchmarks.gpu.time.batch",
        60,
        precision,
        needs_gpu=precision != "float32",
        goals=(goals[precision],) if precision in goals else (),
    )


def _steps() -> Iterator[Step]:
    precisions: tuple[Precision, ...] = get_args(Precision)
    yield Step("setup", "machine", "benchmarks.gpu.setup.machine", 120)
    yield Step("setup", "weights", "benchmarks.gpu.setup.weights", 150)
    yield from map(_golden, precisions)
    yield Step(
        "numbers",
        "float64",
        "benchmarks.gpu.numbers.float64",
        90,
        goals=(Goal("error against float64, float32-split", "rms not larger than float32's", False),),
    )
    yield from map(_batch, precisions)
    yield Step(
        "time",
        "loading",
        "benchmarks.gpu.time.loading",
        60,
        goals=(Goal("a plain load beside the bus", "at most 2 times as long", False),),
    )
    yield Step(
        "service",
        "score",
        "benchmarks.gpu.service.score",
        90,
        goals=(
            Goal("golden /score", "the winner, every loss, the distance"),
            Goal("golden /eval", "the loss, computed on the device"),
        ),
    )
    yield from map(_same_bits, precisions)
    yield Step("numbers", "attention", "benchmarks.gpu.numbers.attention", 60)
    yield Step(
        "numbers",
        "split product",
        "benchmarks.gpu.numbers.split_product",
        60,
        goals=tuple(
            Goal(f"float32-split product, {shape}, {kind}", "rms not larger than float32's", False)
            for shape in ("D to D", "F to D")
            for kind in ("any inputs", "exact inputs")
        ),
    )
    yield Step(
        "time",
        "host gaps",
        "benchmarks.gpu.time.host_gaps",
        60,
        needs_gpu=True,
        goals=(Goal("idle between 4 batches, float32", "no gap of more than 1 ms", False),),
    )
    yield Step("time", "peer", "benchmarks.gpu.time.peer", 90)
    yield Step(
        "numbers",
        "killed worker",
        "benchmarks.gpu.numbers.killed_worker",
        120,
        goals=(Goal("same bits after a kill -9 of the worker", "the same bits"),),
    )
    yield Step(
        "service",
        "full size",
        "benchmarks.gpu.service.full_size",
        150,
        goals=(
            Goal("first /eval of encrypted weights", "the golden loss"),
            Goal("second /eval of encrypted weights", "the golden loss"),
            Goal("two models in one /score", "the same loss from either"),
            Goal("a worker killed in the middle of a request", "the same answer"),
            Goal("memory given back after a kill -9", "all but 256 MiB, twice"),
        ),
    )
    yield Step(
        "service",
        "lack of memory",
        "benchmarks.gpu.service.lack_of_memory",
        120,
        needs_gpu=True,
        goals=(
            Goal("no memory for the weights", "out-of-memory: this machine's fault"),
            Goal("once the memory is back", "the golden loss"),
            Goal("little memory for a batch", "the loss, cut smaller"),
        ),
    )
    yield Step(
        "time",
        "prefetch",
        "benchmarks.gpu.time.prefetch",
        120,
        goals=(Goal("same bits beside a prefetch", "the same bits"),),
    )
    yield Step(
        "service",
        "two workers",
        "benchmarks.gpu.service.two_workers",
        120,
        goals=(Goal("two workers on one device", "the golden loss, and the same bits each time"),),
    )


STEPS = tuple(_steps())
