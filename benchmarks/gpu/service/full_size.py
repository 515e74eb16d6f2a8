"""Encrypted weights at full size through the real service: a first and a second answer, and two models at once."""

import time

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.live import Live, live
from benchmarks.gpu.testbed import SEED, Testbed
from benchmarks.gpu.tolerances import TOLERANCES
from tests.recipe import make_data


def run(testbed: Testbed, findings: Findings) -> None:
    began = time.perf_counter()
    with live(testbed) as running:
        findings.add(
            "service ready",
            f"{time.perf_counter() - began:.1f} s after its start",
            seconds=time.perf_counter() - began,
        )
        _first_and_second(running, findings)
        _two_models(running, findings)


def _first_and_second(running: Live, findings: Findings) -> None:
    case = running.testbed.case
    for name in ("first", "second"):
        began = time.perf_counter()
        answer = running.eval(make_data(case.data), case.seed).raise_for_status().json()
        seconds = time.perf_counter() - began
        off = abs(answer["loss"] / case.loss - 1)
        timings = answer["timings"]
        findings.add(
            f"{name} /eval of encrypted weights",
            f"{seconds:.2f} s, loss {off:.1e} off",
            off <= TOLERANCES["float32"].loss,
            note=f"download {timings['download_seconds']:.2f}, load {timings['load_seconds']:.2f}, "
            f"evaluation {timings['eval_seconds']:.2f} s",
            seconds=seconds,
            loss_relative=off,
            load_seconds=timings["load_seconds"],
            eval_seconds=timings["eval_seconds"],
        )


def _two_models(running: Live, findings: Findings) -> None:
    """Of which the second is loaded beside the evaluation of the first; the first lies on the device."""
    data = running.testbed.data(4 if running.testbed.is_gpu else 1)
    began = time.perf_counter()
    answer = running.score(data, SEED).raise_for_status().json()
    seconds = time.perf_counter() - began
    one, two = (model["loss"] for model in answer["models"])
    waits = [model["timings"]["load_seconds"] for model in answer["models"]]
    findings.add(
        "two models in one /score",
        f"{seconds:.2f} s, {'the same loss' if one == two else 'OTHER LOSSES'}",
        one == two,
        note=f"weights waited for: {waits[0]:.2f} and {waits[1]:.2f} s",
        seconds=seconds,
        second_load_seconds=waits[1],
    )
