"""Is it worth the fee? A candidate against models that are live."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.cli.score.against import Comparison, compare
from service.cli.score.score_sheet import Outcome
from service.errors import BlobUnavailable, ScoringError, WeightsInvalid
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION, KEY, manifest
from tests.recipe import encrypt, small_weights_bytes
from tests.service.cli.command import SMALL, InProcess
from tests.service.cli.score.made_up_sheets import made_up_run, sheet

CLOSED = ("--allow-http", "--allow-private-addresses")


def score(in_process: InProcess, live: list[Any], tmp_path: Path, *flags: str) -> Any:
    (tmp_path / "live.json").write_text(json.dumps(live))
    arguments = (
        "--data",
        "text",
        "--seed",
        str(GOLDEN_COMPETITION.seed),
        "--against",
        str(tmp_path / "live.json"),
    )
    return in_process.run("score", *arguments, *SMALL, *CLOSED, "--data-dir", str(tmp_path / "data"), *flags)


def test_a_candidate_against_manifests_and_a_path(
    in_process: InProcess, files: FileServer, tmp_path: Path
) -> None:
    content = encrypt(small_weights_bytes(GOLDEN_COMPETITION.models[1]))
    live = [manifest(files, "live.enc", content, KEY), "c1.safetensors"]
    ran = score(in_process, live, tmp_path, "c0.safetensors", "--seeds", "2", "--json")
    assert ran.code == 0, ran.err
    against = ran.json["against"]
    first, second, *_ = GOLDEN_COMPETITION.losses
    assert (against["worth_it"], against["candidate"], against["wins"], against["num_runs"]) == (
        True,
        0,
        2,
        2,
    )
    assert against["lead"] == pytest.approx(second - first, abs=0.02)
    assert against["tolerance"] == pytest.approx(0.01 * first, rel=0.01)
    assert [model["live"] for model in ran.json["models"]] == [False, True, True]
    text = score(in_process, live, tmp_path, "c0.safetensors").out
    assert "Worth the fee on this data: c0.safetensors is ahead of the best live model" in text
    assert "live.enc (live)" in text


def test_a_near_tie_is_not_worth_it(in_process: InProcess, tmp_path: Path) -> None:
    ran = score(in_process, ["c2.safetensors"], tmp_path, "c0.safetensors")
    assert (
        "Not worth the fee on this data: c0.safetensors is ahead of live c2.safetensors by only 0.02"
        in ran.out
    )
    ran = score(in_process, ["c0.safetensors"], tmp_path, "c1.safetensors", "--json")
    assert ran.json["against"]["worth_it"] is False
    assert ran.json["against"]["sentence"].startswith(
        "Not worth the fee on this data: live c0.safetensors is ahead"
    )


def test_other_bytes_than_the_manifests_are_no_live_model(
    in_process: InProcess, files: FileServer, tmp_path: Path
) -> None:
    live = manifest(files, "other.enc", encrypt(small_weights_bytes(GOLDEN_COMPETITION.models[1])), KEY)
    ran = score(in_process, [live | {"checksum": "1" * 32}], tmp_path, "c0.safetensors", "--json")
    assert ran.json["models"][1]["error"]["code"] == "model-checksum-mismatch"
    assert ran.json["against"]["worth_it"] is None


@pytest.mark.parametrize(
    ("live", "said"),
    [
        ({"url": "x"}, "not a JSON list"),
        ([], "not a JSON list"),
        ([3], "model 1: it is neither a manifest nor a path"),
        (["c0.safetensors", "nowhere"], "model 2: its url is neither a URL nor a file"),
        ([{"url": "https://h/x", "checksum": "short"}], "its checksum is not"),
        ([{"url": "https://h/x", "decryption_key": "secret"}], "32 bytes in Base58"),
    ],
)
def test_a_list_that_is_none_is_refused(in_process: InProcess, tmp_path: Path, live: Any, said: str) -> None:
    ran = score(in_process, live, tmp_path, "c0.safetensors")
    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert "secret" not in ran.err


def runs_of(outcome: Outcome, *losses: float, is_live: bool = False) -> Outcome:
    candidate = replace(outcome.candidate, is_live=is_live)
    return replace(outcome, candidate=candidate, runs=tuple(map(made_up_run, losses)))


def compared(
    own: tuple[float, ...], live: tuple[float, ...], error: ScoringError | None = None
) -> Comparison:
    """One candidate against one live model, and one that has an error."""
    made_up = sheet(0.0, 0.0, 0.0)
    first, second, third = made_up.outcomes
    failed = replace(third, candidate=replace(third.candidate, is_live=True), runs=(), error=error)
    outcomes = (runs_of(first, *own), runs_of(second, *live, is_live=True), *([failed] if error else []))
    question = replace(made_up.question, seeds=tuple(range(len(own))))
    return compare(replace(made_up, question=question, outcomes=outcomes))


@pytest.mark.parametrize(
    ("own", "live", "error", "worth_it", "wins"),
    [
        ((5.0, 5.0, 5.0), (5.2, 5.2, 5.2), None, True, 3),
        ((4.0, 5.2), (5.0, 5.1), None, False, 1),
        ((5.0,), (5.05,), None, False, 1),
        ((5.0,), (5.0,), None, False, 0),
        ((5.2,), (5.0,), BlobUnavailable("gone", blob="model"), False, 0),
        ((5.0,), (5.2,), BlobUnavailable("gone", blob="model"), None, 1),
        ((5.0,), (5.2,), WeightsInvalid("odd"), True, 1),
    ],
)
def test_what_is_worth_it(
    own: tuple[float, ...],
    live: tuple[float, ...],
    error: ScoringError | None,
    worth_it: bool | None,
    wins: int,
) -> None:
    comparison = compared(own, live, error)
    assert (comparison.worth_it, comparison.wins, comparison.num_runs) == (worth_it, wins, len(own))
    start = {
        True: "Worth the fee",
        False: "Not worth the fee",
        None: "Is it worth the fee? It cannot be told",
    }
    assert comparison.sentence.startswith(start[worth_it])
