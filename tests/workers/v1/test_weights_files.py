"""Odd weights files: what the Rust runner accepts and refuses, a test for each row, plain and encrypted."""

from typing import Any

import pytest

from tests.odd_weights_files import FILES, QUERY, whole, with_header
from tests.recipe import TEST_KEY, encrypt, golden_weights_files, make_data
from workers.v1 import (
    DecryptionFailed,
    EmptyData,
    EvaluationRefused,
    ModelConfig,
    ModelRunner,
    NonFiniteResult,
    WeightsInvalid,
)

DATA = make_data({"pattern": "text", "size": 100})
SEED = 1
ROWS = {name: row for name, row in golden_weights_files().items() if name != "EMPTY-DATA"}
ACCEPTED = [name for name, row in ROWS.items() if row["accepted"] and row["loss"] != "NaN"]
NON_FINITE = [name for name, row in ROWS.items() if row.get("loss") == "NaN"]
REFUSED = [name for name, row in ROWS.items() if not row["accepted"]]
UNREADABLE = ["header-len-huge", "header-not-json"]
"""What a file looks like that was decrypted with a wrong key."""


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner(ModelConfig.small())


def test_every_row_has_its_file() -> None:
    assert set(FILES) == set(ROWS)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(runner: ModelRunner, tmp_path: Any, name: str, encrypted: bool) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(encrypt(FILES[name]()) if encrypted else FILES[name]())
    output = runner.eval(DATA, path, SEED, decryption_key=TEST_KEY if encrypted else None)
    assert output.loss == pytest.approx(ROWS[name]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", NON_FINITE)
def test_accepted_but_the_loss_is_not_finite(runner: ModelRunner, name: str) -> None:
    with pytest.raises(NonFiniteResult, match="the loss is"):
        runner.eval(DATA, FILES[name](), SEED)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(runner: ModelRunner, name: str) -> None:
    with pytest.raises(WeightsInvalid):
        runner.eval(DATA, FILES[name](), SEED)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_encrypted(runner: ModelRunner, name: str) -> None:
    error: type[EvaluationRefused] = DecryptionFailed if name in UNREADABLE else WeightsInvalid
    with pytest.raises(error):
        runner.eval(DATA, encrypt(FILES[name]()), SEED, decryption_key=TEST_KEY)


def test_empty_data(runner: ModelRunner) -> None:
    with pytest.raises(EmptyData):
        runner.eval(b"", whole(), SEED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing-one-tensor", "tensor predictor.bias is missing"),
        ("wrong-shape-bias", "tensor predictor.bias has shape [263], expected [264]"),
        ("one-f8", f"tensor {QUERY} has dtype F8_E4M3, expected F32 or one that converts to it"),
        ("seven-bytes", "the file has 7 bytes: too few for a safetensors header"),
    ],
)
def test_the_message_names_tensor_expected_and_found(runner: ModelRunner, name: str, message: str) -> None:
    with pytest.raises(WeightsInvalid) as raised:
        runner.eval(DATA, FILES[name](), SEED)
    assert raised.value.detail == message


def test_only_the_first_findings_are_named(runner: ModelRunner) -> None:
    with pytest.raises(WeightsInvalid, match=r"is missing; and 32 more$"):
        runner.eval(DATA, FILES["prefix-key"](), SEED)


def test_names_out_of_a_file_are_escaped_and_cut_off(runner: ModelRunner) -> None:
    odd_name = "\x1b[31m\n../" + "x" * 500

    def lengthen(header: dict[str, Any]) -> dict[str, Any]:
        header[odd_name] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}
        return header

    with pytest.raises(WeightsInvalid) as raised:
        runner.eval(DATA, with_header(lengthen)(), SEED)
    assert "\\x1b[31m\\n../xxx" in raised.value.detail
    assert "\x1b" not in raised.value.detail
    assert len(raised.value.detail) < 300


def test_wrong_key(runner: ModelRunner) -> None:
    with pytest.raises(DecryptionFailed):
        runner.eval(DATA, encrypt(whole()), SEED, decryption_key=bytes(32))


def test_a_key_for_a_plain_file(runner: ModelRunner) -> None:
    with pytest.raises(DecryptionFailed):
        runner.eval(DATA, whole(), SEED, decryption_key=TEST_KEY)


def test_no_key_for_an_encrypted_file(runner: ModelRunner) -> None:
    with pytest.raises(WeightsInvalid, match="not a safetensors file"):
        runner.eval(DATA, encrypt(whole()), SEED)


def test_a_key_of_another_length(runner: ModelRunner) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        runner.eval(DATA, encrypt(whole()), SEED, decryption_key=bytes(16))
