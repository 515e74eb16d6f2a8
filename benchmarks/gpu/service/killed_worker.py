"""A worker of the real service is killed in the middle of a request: the answer, and the card's memory afterwards."""

import os
import signal
import threading
import time
from typing import Any

from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.live import Live, live, used_bytes_of_card
from benchmarks.gpu.testbed import SEED, Testbed

MOST_LEFT_BYTES = 256 << 20
"""Memory that may differ for reasons of the driver's own."""


def run(testbed: Testbed, findings: Findings) -> None:
    name = "memory given back after a kill -9"
    before = used_bytes_of_card() if testbed.is_gpu else 0
    data = testbed.data(8 if testbed.is_gpu else 3)
    with live(testbed) as running:
        whole = running.eval(data, SEED).raise_for_status().json()
        in_use = used_bytes_of_card() if testbed.is_gpu else 0
        answer = killed_midway(running, data, whole["timings"]["eval_seconds"])
        same = (answer["loss"], answer["embedding"]) == (whole["loss"], whole["embedding"])
        findings.add(
            "a worker killed in the middle of a request",
            "the same answer" if same else "ANOTHER ANSWER",
            same and running.num_restarts() >= 1,
            note=f"{running.num_restarts()} restarts",
        )
        after = used_bytes_of_card() if testbed.is_gpu else 0
    if not testbed.is_gpu:
        findings.missing(name, NEEDS_GPU)
        return
    left = used_bytes_of_card() - before
    findings.add(
        name,
        f"{(after - in_use) / 1e9:+.2f} GB with the new worker, {left / 1e9:+.2f} GB once the service has ended",
        after - in_use <= MOST_LEFT_BYTES and left <= MOST_LEFT_BYTES,
        with_new_worker_bytes=after - in_use,
        left_bytes=left,
    )


def killed_midway(running: Live, data: bytes, eval_seconds: float) -> dict[str, Any]:
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
