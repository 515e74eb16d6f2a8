"""The page of `score --report`: right numbers, nothing from outside, and no name that could do harm."""

import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from service.cli.charts import nice_ticks
from service.cli.score.file_state import FileChanged, state_of
from service.cli.score.held_out import HeldOut
from service.cli.score.question import Candidate, Question
from service.cli.score.report import (
    Origin,
    bits_of_bytes,
    bits_of_tokens,
    is_report,
    render_report,
    write_report,
)
from service.cli.score.score_sheet import Outcome, Run, ScoreSheet, WeightsChecksums
from tests.recipe import golden_cases, make_data, small_weights_bytes
from workers.v1 import ModelConfig, ModelRunner

NUM_TOKENS = 1024
DATA = make_data({"pattern": "text", "size": 3000}) + "ä€\n".encode() + b"\xff"
ORIGIN = Origin(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "soma-eval score a b", "1", "small")
HOSTILE = "<script>alert(1)</script>.safetensors"


def sheet(folder: Path, *names: str, size: int = len(DATA), with_target: bool = True) -> ScoreSheet:
    """Made-up runs: the i-th candidate is worse by i on every other byte."""
    path = folder / "data"
    path.write_bytes(DATA[:size])
    question = Question(
        candidates=tuple(Candidate(name) for name in names),
        data=(HeldOut("data", path, size, state_of(path)),),
        seeds=(0,),
        target=(1.0, 0.0) if with_target else None,
        detail=True,
    )
    return ScoreSheet(question, tuple(Outcome(c, (run(size, i),)) for i, c in enumerate(question.candidates)))


def run(size: int, worse_by: int) -> Run:
    num_sequences = -(-size // NUM_TOKENS)
    nats = np.full((num_sequences, NUM_TOKENS), math.log(2), dtype=np.float32)
    nats[:, ::2] += worse_by
    return Run(
        data="data",
        seed=0,
        loss=1.0 + worse_by,
        cross_entropy=1.0 + worse_by,
        sig_reg=0.0,
        embedding=np.array([1.0, worse_by], dtype=np.float32),
        distance=0.25,
        attends_to_future=False,
        num_predicted=size,
        num_tokens=num_sequences * NUM_TOKENS,
        load_seconds=0.0,
        eval_seconds=0.0,
        token_cross_entropy=nats,
    )


class Balanced(HTMLParser):
    """Fails where a tag is closed that was not opened last."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_bits_stand_at_the_bytes_they_are_of() -> None:
    golden = golden_cases()["small-1025"]
    data = make_data(golden.data)
    runner = ModelRunner(ModelConfig.small())
    model = runner.load(small_weights_bytes())
    (score,) = runner.eval_batches(model, data, golden.seed, range(1), detail=True)
    assert score.token_cross_entropy is not None
    bits = bits_of_tokens(score.token_cross_entropy, len(data))
    assert np.isfinite(bits).sum() == 1023 + 1  # one byte and its EOS in the second sequence
    assert np.nansum(bits) * math.log(2) / bits.size == pytest.approx(golden.cross_entropy[0], rel=1e-5)
    by_byte = bits_of_bytes(bits, len(data))
    assert by_byte.shape == (1025,)
    assert np.flatnonzero(np.isnan(by_byte)).tolist() == [0, 1024]  # nothing predicts a sequence's first byte
    assert by_byte[1] == bits[0, 0]


def test_the_page_is_whole_and_alone(tmp_path: Path) -> None:
    page = render_report(sheet(tmp_path, "a/x.safetensors", "b/x.safetensors", "c.safetensors"), ORIGIN)
    parser = parsed(page)
    assert parser.seen.count("figure") == 3
    assert {"link", "img", "iframe", "object"}.isdisjoint(parser.seen)
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "a/x.safetensors is best" in page


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    page = render_report(sheet(tmp_path, HOSTILE, "other.safetensors"), ORIGIN)
    assert parsed(page).seen.count("script") == 1
    assert "<script>alert" not in page


def test_where_candidates_differ_is_shown_byte_by_byte(tmp_path: Path) -> None:
    page = render_report(sheet(tmp_path, "best", "worse"), ORIGIN)
    assert "best predicts 50 % of the bytes better, worse 0 %" in page
    assert re.search(r'<span class="b2">.</span>', page)  # worse by one nat, which is 1.44 bits
    assert "worse is most ahead" not in page


def test_a_near_tie_names_no_winner(tmp_path: Path) -> None:
    whole = sheet(tmp_path, "a", "b", "c")
    runs = [
        replace(outcome.runs[0], loss=loss)
        for outcome, loss in zip(whole.outcomes, (5.0, 5.04, 5.2), strict=True)
    ]
    outcomes = tuple(replace(o, runs=(r,)) for o, r in zip(whole.outcomes, runs, strict=True))
    tied = replace(whole, outcomes=outcomes)
    assert tied.near_ties() == [0, 1]
    page = render_report(tied, ORIGIN)
    assert "A near tie of 2 candidates: none of them is clearly the best" in page
    assert "a is best" not in page
    assert "a and b. Both are within the 1 % or 0.01" in page


def test_the_page_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    whole = sheet(tmp_path, "a", "b")
    run = replace(whole.outcomes[0].runs[0], precision="tf32", device="cuda:0", versions={"torch": "2.0"})
    sealed = replace(whole.question.candidates[0], key=bytes(32))
    first = replace(
        whole.outcomes[0],
        candidate=sealed,
        runs=(run,),
        checksums=WeightsChecksums("OfTheFile", "OfThePlain"),
    )
    page = render_report(
        replace(whole, outcomes=(first, whole.outcomes[1]), data_checksums=("OfTheData",)), ORIGIN
    )
    for fact in (
        *("2026-01-02 03:04:05 UTC", "soma-eval score a b", "tf32", "cuda:0", "torch 2.0", "the small model"),
        *("OfTheFile", "OfThePlain", "OfTheData", "version 1"),
    ):
        assert fact in page


def test_long_names_are_told_apart(tmp_path: Path) -> None:
    names = [f"{'same/' * 30}step-{step}{'-same' * 30}.safetensors" for step in (111, 222)]
    page = render_report(sheet(tmp_path, *names), ORIGIN)
    chips = re.findall(r'title="show or hide">(.*?)<', page)
    assert ["111" in chips[0], "222" in chips[1]] == [True, True]
    assert "text-overflow" not in page


def test_data_that_changed_makes_no_page(tmp_path: Path) -> None:
    whole = sheet(tmp_path, "a", "b")
    (tmp_path / "data").write_bytes(b"other")
    with pytest.raises(FileChanged):
        render_report(whole, ORIGIN)


def test_a_page_is_known_by_its_mark(tmp_path: Path) -> None:
    write_report(render_report(sheet(tmp_path, "a"), ORIGIN), tmp_path / "page.html")
    (tmp_path / "other.html").write_text("<!doctype html><title>soma-eval: scores</title>")
    assert is_report(tmp_path / "page.html")
    assert not is_report(tmp_path / "other.html")


@pytest.mark.parametrize("size", [1, 2, 1024, 1025])
@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=len)
def test_little_data_makes_a_page_too(tmp_path: Path, size: int, names: tuple[str, ...]) -> None:
    parsed(render_report(sheet(tmp_path, *names, size=size, with_target=False), ORIGIN))


def test_no_winner_makes_a_page_too(tmp_path: Path) -> None:
    from service.errors import WeightsInvalid

    whole = sheet(tmp_path, "a")
    failed = ScoreSheet(whole.question, (Outcome(whole.question.candidates[0], error=WeightsInvalid("<b>")),))
    write_report(render_report(failed, ORIGIN), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    parsed(page)
    assert "No candidate has a loss" in page
    assert "a: &lt;b&gt;" in page


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.4, 2.77), (-5.0, 1000.0), (3.0, 3.0001)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 6
    assert all(low <= tick <= high for tick in ticks)
