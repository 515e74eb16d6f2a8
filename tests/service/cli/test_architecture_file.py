"""`--architecture` of the commands: another architecture in place of the network's, and what is said of a bad file."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.recipe import make_data, make_weights, safetensors_bytes
from tests.service.cli.command import InProcess
from tests.workers.v1.float64_evaluation import evaluate

FOUR_LAYERS = {"embedding_dim": 16, "pwff_hidden_dim": 32, "num_layers": 4, "num_heads": 4, "vocab_size": 264}
OTHER = {**FOUR_LAYERS, "max_seq_len": 64, "batch_size": 32, "sig_reg_slices": 512}
WEIGHTS = dict(make_weights(FOUR_LAYERS, {"scheme": "scaled", "seed": 7}))
DATA = make_data({"pattern": "hash", "size": 64 * 33 + 5, "seed": 3})
CPU = ("--device", "cpu")


@pytest.fixture
def in_folder(in_plain: InProcess, no_processes: None) -> InProcess:
    """Commands in a folder with an architecture, weights of it, and data."""
    (in_plain.folder / "other.json").write_text(json.dumps(OTHER))
    (in_plain.folder / "other.safetensors").write_bytes(safetensors_bytes(WEIGHTS))
    (in_plain.folder / "data").write_bytes(DATA)
    return in_plain


def test_score_evaluates_by_it(in_folder: InProcess) -> None:
    ran = in_folder.run(
        *("score", "other.safetensors", "--data", "data", "--seed", "5", "--json", *CPU),
        *("--architecture", "other.json"),
    )
    assert (ran.code, ran.complaints) == (0, "")
    loss, embedding = evaluate(
        WEIGHTS, DATA, 5, num_layers=4, num_heads=4, max_seq_len=64, batch_size=32, slices=512
    )
    (model,) = ran.json["models"]
    assert model["loss"] == pytest.approx(loss, rel=1e-5)
    assert np.abs(np.array(model["embedding"]) - embedding).max() < 2e-5


def test_the_variable_counts_too(in_folder: InProcess) -> None:
    ran = in_folder.run("check", "other.safetensors", "--json", SOMA_EVAL_ARCHITECTURE="other.json")
    assert ran.json["accepted"]
    assert any("architecture of other.json" in remark for remark in ran.json["remarks"])


def test_weights_of_another_model_are_explained(in_folder: InProcess) -> None:
    ran = in_folder.run("check", "plain.safetensors", "--architecture", "other.json")
    assert ran.code == 1
    assert "weights of the small model, and --architecture is set" in ran.out


def test_an_embedding_is_that_of_its_architecture(in_folder: InProcess) -> None:
    other = ("--architecture", "other.json")
    in_folder.run(
        *("score", "other.safetensors", "--data", "data", "--embedding-out", "e.json", *CPU, *other)
    )
    more_slices = {**OTHER, "sig_reg_slices": 256}
    (in_folder.folder / "more.json").write_text(json.dumps(more_slices))
    encrypt = (
        "encrypt",
        "other.safetensors",
        "-o",
        "other.enc",
        "--key-file",
        "key",
        "--embedding",
        "e.json",
    )
    refused = in_folder.run(*encrypt, "--architecture", "more.json")
    assert refused.code == 2
    assert "the same --small-model or --architecture" in refused.err
    taken = in_folder.run(*encrypt, *other)
    assert taken.code == 0, taken.err
    assert "--architecture other.json" in taken.out


def test_a_report_names_it(in_folder: InProcess) -> None:
    in_folder.run(
        *("score", "other.safetensors", "--data", "data", "--report", "report.html", *CPU),
        *("--architecture", "other.json"),
    )
    page = (in_folder.folder / "report.html").read_text()
    assert "--architecture other.json" in page
    assert "the full model" not in page


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "it is empty"),
        (b"\xff\xfe", "it is not text"),
        (b" " * (1 << 16) + b"{}", "it is too large"),
        (b'{"num_layer": 1}', "num_layers is one"),
        (b'{"num_heads": 3}', "not a multiple"),
    ],
)
@pytest.mark.parametrize("command", [("serve",), ("check", "other.safetensors")])
def test_a_bad_file_is_one_line(
    in_folder: InProcess, content: bytes | None, words: str, command: tuple[str, ...]
) -> None:
    path: Path = in_folder.folder / "bad.json"
    if content is not None:
        path.write_bytes(content)
    ran = in_folder.run(*command, "--architecture", "bad.json")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("soma-eval: --architecture (SOMA_EVAL_ARCHITECTURE): bad.json: ")
    assert words in ran.err


@pytest.mark.parametrize("command", [("serve",), ("score", "x", "--data", "data"), ("check", "x")])
def test_two_architectures_are_a_contradiction(in_folder: InProcess, command: tuple[str, ...]) -> None:
    ran = in_folder.run(*command, "--architecture", "other.json", "--small-model")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "soma-eval: small_model and architecture name two architectures: give one of them\n"
