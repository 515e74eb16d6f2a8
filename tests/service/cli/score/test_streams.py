"""Where `score` writes what it has to say: terminals, pipes, and streams that are closed or full."""

import os
import sys
from pathlib import Path

import pytest

from tests.exec_prepared import Inherited
from tests.recipe import small_weights_bytes
from tests.service.cli.command import SMALL, InProcess, run_command

SCORE = ("score", *SMALL, "--data", "short")


def test_the_diagnosis_of_check_is_that_of_score(in_process: InProcess, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04" + bytes(3000))
    (tmp_path / "cut.safetensors").write_bytes(small_weights_bytes()[:-1])
    names = [str(tmp_path / name) for name in ("x.pt", "cut.safetensors")]
    ran = in_process.run(*SCORE, *names, "plain.safetensors", "--full-model")
    assert ran.code == 1
    pt, cut, cut_too, small = ran.out.splitlines()
    assert "a zip archive, as torch.save writes it" in pt
    assert "the file is cut off" in cut
    assert "--small-model" in cut_too
    assert "--small-model" in small
    assert "upload" not in ran.out


def test_a_precision_that_needs_a_gpu_is_refused_at_once(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.processes.devices.count_gpus", lambda: 0)
    ran = in_process.run("score", "plain.safetensors", "--data", "short", "--precision", "bf16")
    assert (ran.code, ran.out) == (3, "")
    assert "precision bf16 needs a GPU" in ran.err
    assert "--device cpu works" not in ran.err


@pytest.mark.slow
def test_a_terminal_without_unicode_is_enough(prepared: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    ran = run_command(prepared, *SCORE, "sealed.enc", variables=ascii_only)
    assert (ran.code, ran.complaints) == (1, "")
    assert ran.out.startswith("x sealed.enc: ")


def test_a_name_that_is_not_text_is_no_bug(in_process: InProcess, tmp_path: Path) -> None:
    weights = tmp_path / os.fsdecode(b"odd-\xff.safetensors")
    weights.write_bytes(small_weights_bytes())
    ran = in_process.run(*SCORE, str(weights), "--json")
    assert (ran.code, ran.complaints) == (0, "")
    assert ran.json["models"][0]["weights"] == str(weights)


def test_where_nobody_can_see_the_result_nothing_is_evaluated(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    ran = in_process.run(*SCORE, "plain.safetensors")
    assert ran.code == 2
    assert "standard output is closed" in ran.err


@pytest.mark.slow
def test_a_page_is_written_with_standard_output_closed(prepared: Path, tmp_path: Path) -> None:
    flags = ("--report", str(tmp_path / "page.html"))
    ran = run_command(
        prepared, *SCORE, "plain.safetensors", *flags, stdout=None, inherited=Inherited(closed_descriptor=1)
    )
    assert (ran.code, ran.complaints) == (0, "")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_a_full_standard_output_is_reported(prepared: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = run_command(prepared, *SCORE, "plain.safetensors", "--json", stdout=full)
    assert ran.code == 3
    assert ran.complaints == "soma-eval: standard output cannot be written (No space left on device).\n"


@pytest.mark.slow
def test_a_reader_that_leaves_is_not_the_weights_fault(prepared: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = run_command(prepared, *SCORE, "plain.safetensors", stdout=writing)
    os.close(writing)
    assert ran.code == 3
    assert ran.complaints == "soma-eval: standard output cannot be written (Broken pipe).\n"


@pytest.mark.slow
def test_standard_error_may_be_closed(prepared: Path) -> None:
    ran = run_command(
        prepared, *SCORE, "plain.safetensors", "--json", inherited=Inherited(closed_descriptor=2)
    )
    assert ran.code == 0
    assert ran.json["winner"] == 0
