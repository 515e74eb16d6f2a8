"""The small model through the real service on the device: the golden competition by POST /score, and POST /eval."""

import numpy as np

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.live import live
from benchmarks.gpu.testbed import Testbed
from benchmarks.gpu.tolerances import TOLERANCES
from tests.file_server import FileServer
from tests.golden_requests import (
    GOLDEN_COMPETITION,
    GOLDEN_EVALUATION,
    competition,
    post_eval,
    request_for,
)
from tests.recipe import small_weights_bytes

MOST_DISTANCE_OFF = 2e-5


def run(testbed: Testbed, findings: Findings) -> None:
    allowed = TOLERANCES[testbed.precision].loss
    folder = testbed.folder / "published"
    folder.mkdir(exist_ok=True)
    with FileServer(folder).running() as files, live(testbed, "--small-model") as running:
        answer = running.post("/score", competition(files, GOLDEN_COMPETITION)).raise_for_status().json()
        with running.service.client() as client:
            evaluation = post_eval(client, request_for(files, "weights.safetensors", small_weights_bytes()))
    losses = np.array([model["loss"] for model in answer["models"]])
    off = float(np.abs(losses / np.array(GOLDEN_COMPETITION.losses) - 1).max())
    distance_off = abs(answer["distance"][0] - GOLDEN_COMPETITION.distance)
    findings.add(
        "golden /score",
        f"winner {answer['winner']}, losses {off:.1e}, distance {distance_off:.1e} off",
        answer["winner"] == GOLDEN_COMPETITION.winner
        and off <= allowed
        and distance_off <= MOST_DISTANCE_OFF,
        worst_loss_relative=off,
        distance_off=distance_off,
    )
    off = abs(evaluation["loss"] / GOLDEN_EVALUATION.loss - 1)
    device = evaluation["provenance"]["device"]
    findings.add(
        "golden /eval",
        f"loss {off:.1e} off, by {device}",
        off <= allowed and device.startswith(testbed.device),
        loss_relative=off,
    )
