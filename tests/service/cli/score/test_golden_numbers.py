"""`score` gives the golden numbers, however the weights and the data are named."""

from pathlib import Path
from typing import Any

import base58
import numpy as np
import pytest

from tests.file_server import FileServer
from tests.live_service import LiveService
from tests.recipe import TEST_KEY, golden_cases, golden_competitions, make_data, small_weights_bytes
from tests.service.cli.command import SMALL, InProcess, run_command

KEY = base58.b58encode(TEST_KEY).decode()
COMPETITION = golden_competitions()["competition-three"]


def approx(loss: float) -> Any:
    return pytest.approx(loss, rel=1e-5)


def test_score_gives_the_golden_numbers_of_a_competition(in_process: InProcess) -> None:
    ran = in_process.run(
        *("score", *SMALL, "--weights", "c*.safetensors", "--data", "text", "--json"),
        *("--seed", str(COMPETITION.seed), "--target", "target.json"),
    )
    assert (ran.code, ran.complaints) == (0, "")
    models = ran.json["models"]
    assert ran.json["winner"] == COMPETITION.winner
    assert [model["loss"] for model in models] == [approx(loss) for loss in COMPETITION.losses]
    assert models[0]["distance"] == pytest.approx(COMPETITION.distance, abs=2e-5)
    assert np.abs(np.array(models[0]["embedding"]) - COMPETITION.embedding).max() < 2e-5
    assert [model["weights"] for model in models] == [f"c{i}.safetensors" for i in range(3)]
    assert ran.json["near_tie"]
    needed = {"weights", "loss", "cross_entropy", "sig_reg", "embedding", "distance", "error"}
    assert all(needed <= set(model) for model in models)


def test_plain_and_encrypted_score_the_same_and_one_bad_candidate_costs_nothing(
    in_process: InProcess,
) -> None:
    golden = golden_cases()["small-short"]
    names = ("plain.safetensors", "sealed.enc", "broken.safetensors")
    ran = in_process.run(
        *(
            "score",
            *SMALL,
            *(flag for name in names for flag in ("--weights", name)),
            "--data",
            "-",
            "--json",
        ),
        *("--key", "none", "--key", KEY, "--key", KEY, "--seed", str(golden.seed)),
        stdin=make_data(golden.data),
    )
    plain, sealed, broken = ran.json["models"]
    assert (ran.code, ran.complaints) == (0, "")
    assert plain["loss"] == sealed["loss"] == approx(golden.loss)
    assert plain["cross_entropy"] == approx(golden.cross_entropy[0])
    assert plain["bits_per_byte"] == approx(golden.cross_entropy[0] * 1024 / 100 / np.log(2))
    assert plain["embedding"] == sealed["embedding"]
    assert (broken["loss"], broken["error"]["code"]) == (None, "decryption-failed")
    assert KEY not in ran.out


def test_several_files_and_seeds_are_averaged_and_shown(in_process: InProcess, tmp_path: Path) -> None:
    flags = ("--weights", "plain.safetensors", "--weights", "leak.safetensors", "--data", "folder")
    page = ("--report", str(tmp_path / "page.html"))
    ran = in_process.run(
        "score", *SMALL, *flags, "--seed", "1", "--seeds", "2", "--target", "target.npy", *page
    )
    assert (ran.code, ran.complaints) == (0, "")
    assert "2 files, seeds 1 to 2" in ran.out
    assert "± spread" in ran.out
    assert "leak.safetensors sees the bytes it predicts" in ran.out
    assert "of 4 runs" in ran.out
    assert "Where they differ" in (tmp_path / "page.html").read_text()
    ran = in_process.run("score", *SMALL, *flags[:2], *flags[4:], "--seed", "1", "--json")
    model = ran.json["models"][0]
    losses = [golden_cases()[name].loss for name in ("small-short", "small-1024")]
    assert [run["loss"] for run in model["runs"]] == [approx(loss) for loss in losses]
    assert model["loss"] == approx(sum(losses) / 2)


@pytest.mark.slow
def test_the_workers_of_a_real_command_give_the_golden_numbers(prepared: Path) -> None:
    golden = golden_cases()["small-short"]
    seed = ("--seed", str(golden.seed))
    ran = run_command(prepared, "score", *SMALL, "plain.safetensors", "--data", "short", *seed, "--json")
    assert (ran.code, ran.complaints) == (0, "")
    assert ran.json["models"][0]["loss"] == approx(golden.loss)


def test_the_same_weights_twice_are_a_tie_and_the_first_wins(in_process: InProcess) -> None:
    ran = in_process.run("score", *SMALL, *("--weights", "plain.safetensors") * 2, "--data", "text", "--json")
    assert (ran.code, ran.json["winner"], ran.json["margin"], ran.json["near_tie"]) == (0, 0, 0.0, True)


def test_no_winner_is_the_weights_fault(in_process: InProcess) -> None:
    ran = in_process.run("score", *SMALL, "--weights", "sealed.enc", "--data", "text")
    assert ran.code == 1
    assert ran.out.startswith("✗ sealed.enc: there is no unencrypted safetensors header")
    assert len(ran.out.splitlines()) == 1


def test_a_running_service_can_do_it(in_process: InProcess, service: LiveService, files: FileServer) -> None:
    golden = golden_cases()["small-short"]
    url = files.publish("by-url.safetensors", small_weights_bytes()) + "?signature=secret0"
    ran = in_process.run(
        *("score", "--url", service.http_url, "--weights", "sealed.enc", "--weights", url, "--data", "short"),
        *("--key-file", "key", "--seed", str(golden.seed), "--json"),
    )
    sealed, wrong = ran.json["models"]
    assert ran.code == 0
    assert sealed["loss"] == approx(golden.loss)
    assert wrong["weights"].endswith("/by-url.safetensors")
    assert "secret0" not in ran.out + ran.err
    assert wrong["error"]["code"] == "decryption-failed"  # one key for all, and this one is in the clear
    ran = in_process.run(
        "score", "--url", "http://127.0.0.1:9", "--weights", "plain.safetensors", "--data", "short"
    )
    assert (ran.code, "Is `soma-eval serve` running" in ran.out) == (3, True)


def test_weights_of_a_url_are_fetched(in_process: InProcess, files: FileServer, tmp_path: Path) -> None:
    url = files.publish("fetched.safetensors", small_weights_bytes())
    flags = (
        "--allow-http",
        "--allow-private-addresses",
        "--data-dir",
        str(tmp_path),
        "--seed",
        "1",
        "--json",
    )
    ran = in_process.run("score", *SMALL, "--weights", url, "--data", "short", *flags)
    assert ran.code == 0
    assert ran.json["models"][0]["loss"] == approx(golden_cases()["small-short"].loss)
