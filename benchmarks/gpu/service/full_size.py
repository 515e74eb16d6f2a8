"""Encrypted weights at full size through the real service: two answers, two models at once, a worker killed.

And the card's memory: what a killed worker held is given back, and once the service has ended all of it is.
"""

import os
import signal
import threading
import time
from typing import Any

from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.live import Live, live, used_bytes_of_card
from benchmarks.gpu.testbed import SEED, Testbed
from benchmarks.gpu.tolerances import TOLERANCES
from tests.recipe import make_data

MOST_LEFT_BYTES = 256 << 20
"""Memory that may differ for reasons of the driver's own."""


def run(testbed: Testbed, findings: Findings) -> None:
    before = _used_bytes(testbed)
    began = time.perf_counter()
    with live(testbed) as running:
        ready = time.perf_counter() - began
        findings.add("service ready", f"{ready:.1f} s after its start", seconds=ready)
        _first_and_second(running, findings)
        data = testbed.data_of_workers(8, sequences_on_cpu=16)
        _two_models(running, data, findings)
        in_use = _used_bytes(testbed)
        _killed(running, data, findings)
        after = _used_bytes(testbed)
    name = "memory given back after a kill -9"
    if not testbed.is_gpu:
        findings.missing(name, NEEDS_GPU)
        return
    more, left = after - in_use, _used_bytes(testbed) - before
    findings.add(
        name,
        f"{more / 1e9:+.2f} GB with the new worker, {left / 1e9:+.2f} GB once the service has ended",
        more <= MOST_LEFT_BYTES and left <= MOST_LEFT_BYTES,
        with_new_worker_bytes=more,
        left_bytes=left,
    )


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


def _two_models(running: Live, data: bytes, findings: Findings) -> None:
    """Of which the second is loaded beside the evaluation of the first; the first lies on the device."""
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


def _killed(running: Live, data: bytes, findings: Findings) -> None:
    whole = running.eval(data, SEED).raise_for_status().json()
    answer = _killed_midway(running, data, whole["timings"]["eval_seconds"])
    same = (answer["loss"], answer["embedding"]) == (whole["loss"], whole["embedding"])
    findings.add(
        "a worker killed in the middle of a request",
        "the same answer" if same else "ANOTHER ANSWER",
        same and running.num_restarts() >= 1,
        note=f"{running.num_restarts()} restarts",
    )


def _killed_midway(running: Live, data: bytes, eval_seconds: float) -> dict[str, Any]:
    """The answer to a request during whose evaluation one worker is killed."""
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        answers.append(running.eval(data, SEED).raise_for_status().json())

    running.wait_until_ready()
    (worker, *_) = running.workers()
    asking = threading.Thread(target=ask)
    asking.start()
    while not any(device["busy"] for device in running.devices()) and asking.is_alive():
        time.sleep(0.005)
    time.sleep(0.3 * eval_seconds)
    if not asking.is_alive():
        raise RuntimeError("the request was answered before its worker could be killed")
    os.kill(worker, signal.SIGKILL)
    asking.join()
    running.wait_until_ready()
    if not answers:
        raise RuntimeError("the request failed")
    return answers[0]


def _used_bytes(testbed: Testbed) -> int:
    return used_bytes_of_card() if testbed.is_gpu else 0
