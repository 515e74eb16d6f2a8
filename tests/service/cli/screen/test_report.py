"""The page of `screen --report`: what it counts, and that names of others stay text."""

from pathlib import Path
from typing import Any

from service.cli.screen.nearness import NUM_BINS, Nearness
from service.cli.screen.report import is_report, render_report
from service.scoring.screen import ScreenSummary
from tests.service.cli.command import SMALL, InProcess
from tests.service.cli.screen.models_and_targets import write_json


def line(piece: Any, *distances: float | None, threshold: float = 0.5) -> dict[str, Any]:
    targets = [
        {"id": i, "distance": distance, "hit": distance is not None and distance <= threshold}
        for i, distance in enumerate(distances)
    ]
    return {"piece": piece, "targets": targets}


def test_counts() -> None:
    nearness = Nearness({0: 0.5, 1: 0.5})
    for each in (line("a", 0.5, 0.91), line("b", 0.47, None), line("c", 5.0, -5.0)):
        nearness.add(each)
    edges, counts = nearness.histogram()
    assert sum(counts) == 5
    assert (nearness.targets[0].hits, nearness.targets[0].nearest) == (2, "b")
    hits = [count for start, count in zip(edges, counts, strict=False) if start < -1e-9]
    assert sum(hits) == 3  # the one on the threshold too
    assert len(counts) == NUM_BINS  # what lies beyond is in the first and the last


def test_no_distance_makes_no_chart() -> None:
    nearness = Nearness({0: 0.5})
    nearness.add(line("a", None))
    assert nearness.histogram() == ([], [])
    assert "<figure" not in render_report(nearness, ScreenSummary(pieces=1))


def test_names_are_text() -> None:
    nearness = Nearness({"<script>t": 0.5})
    nearness.add({"piece": "<img>", "targets": [{"id": "<script>t", "distance": 0.1, "hit": True}]})
    page = render_report(nearness, ScreenSummary(pieces=1, pieces_with_hits=1))
    assert "&lt;script&gt;t" in page
    assert "&lt;img&gt;" in page
    assert "<img>" not in page


def test_the_command_writes_it(in_process: InProcess, prepared: Path, tmp_path: Path) -> None:
    models = write_json(tmp_path / "models.json", [{"url": str(prepared / "c0.safetensors")}])
    target = {"embedding": [1.0] * 16, "distance_threshold": 2.0}
    targets = write_json(tmp_path / "targets.json", [target])
    page = tmp_path / "page.html"
    flags = ("screen", *SMALL, "--models", models, "--targets", targets, "--data", "folder")
    for _ in range(2):  # its own kind is replaced
        assert in_process.run(*flags, "--report", str(page)).code == 0
    assert is_report(page)
    assert "2 of 2 pieces hit a target" in page.read_text()
    ran = in_process.run(*flags, "--report", models)
    assert ran.code == 2
    assert "one of the files to read" in ran.err
