"""What `score` writes, and what it never overwrites."""

from pathlib import Path

import base58
import numpy as np
import pytest

from service.checksum import checksum_of
from service.cli.embedding_file import read_embedding_file
from service.cli.score.report import is_report
from tests.exec_prepared import Inherited
from tests.recipe import TEST_KEY, golden_cases
from tests.service.cli.command import SMALL, InProcess, run_command

GOLDEN = golden_cases()["small-short"]
SCORE = ("score", *SMALL, "--data", "short")


def test_the_embedding_of_exactly_this_file_is_written(in_process: InProcess, tmp_path: Path) -> None:
    weights, out = (in_process.folder / "plain.safetensors").read_bytes(), tmp_path / "embedding.json"
    flags = ("--seed", str(GOLDEN.seed), "--embedding-out", str(out), "--json")
    ran = in_process.run(*SCORE, "plain.safetensors", *flags)
    assert (ran.code, ran.complaints) == (0, "")
    written = read_embedding_file(out)
    printed = ran.json["models"][0]["embedding"]
    assert written.embedding.tolist() == np.array(printed, dtype=np.float32).tolist()
    assert np.abs(written.embedding - GOLDEN.embedding).max() < 2e-5
    assert written.checksum == checksum_of(weights)
    assert written.data_checksum == checksum_of((in_process.folder / "short").read_bytes())
    assert (written.weights, written.seed, written.small_model) == ("plain.safetensors", GOLDEN.seed, True)
    assert set(written.versions) >= {"soma-eval", "torch"}


def test_of_encrypted_weights_the_checksum_is_that_of_the_plain_ones(
    in_process: InProcess, tmp_path: Path
) -> None:
    out, page = tmp_path / "embedding.json", tmp_path / "page.html"
    flags = ("--key-file", "key", "--embedding-out", str(out), "--report", str(page))
    ran = in_process.run(*SCORE, "sealed.enc", *flags)
    assert (ran.code, ran.complaints) == (0, "")
    plain, sealed = (
        checksum_of((in_process.folder / name).read_bytes()) for name in ("plain.safetensors", "sealed.enc")
    )
    assert read_embedding_file(out).checksum == plain
    text = page.read_text()
    assert plain in text
    assert sealed in text
    assert base58.b58encode(TEST_KEY).decode() not in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["plain.safetensors", "plain.safetensors", "--data", "short"], "there are 2 weights files"),
        (["plain.safetensors", "--data", "folder"], "there are 2 files of data"),
        (["plain.safetensors", "--data", "short", "--seeds", "3"], "there are 3 seeds"),
        (["plain.safetensors", "--data", "short", "--url", "http://127.0.0.1:1"], "leave out --url"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_embedding_that_no_evaluation_gives_is_not_written(
    in_process: InProcess, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    out = tmp_path / "out.json"
    ran = in_process.run("score", *arguments, "--embedding-out", str(out))
    assert (ran.code, reason in ran.err) == (2, True)
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--report", "--embedding-out"])
@pytest.mark.parametrize(
    "output", ["plain.safetensors", "short", "sealed.enc", "folder", "/dev/full", "no/such"]
)
def test_no_other_file_is_overwritten(in_process: InProcess, flag: str, output: str) -> None:
    before = (in_process.folder / "plain.safetensors").read_bytes()
    ran = in_process.run(*SCORE, "plain.safetensors", flag, output)
    assert (ran.code, ran.out) == (2, "")
    assert ran.complaints.startswith(f"soma-eval: {flag} {output}")
    assert (in_process.folder / "plain.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_full_disk_leaves_the_report_that_was_there(
    in_process: InProcess, prepared: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert in_process.run(*SCORE, "plain.safetensors", "--report", str(page)).code == 0
    assert is_report(page)
    before = page.read_bytes()
    ran = run_command(
        *(prepared, *SCORE, "plain.safetensors", "--report", str(page)),
        inherited=Inherited(max_file_bytes=4096),
    )
    assert ran.code == 3
    kept, told = ran.complaints.splitlines()
    assert "the state database cannot be used" in kept
    assert told == f"soma-eval: {page}: File too large."
    assert page.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
