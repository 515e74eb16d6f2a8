"""What counts as a new best."""

from dataclasses import replace

from service.cli.score.question import Candidate
from service.cli.score.score_sheet import Outcome
from service.cli.watch.new_best import BestSoFar, is_clearly_ahead
from service.errors import WeightsInvalid
from tests.service.cli.score.made_up_sheets import made_up_run


def outcome(*losses: float, was_kept: bool = False) -> Outcome:
    runs = tuple(replace(made_up_run(loss), result_cached=was_kept) for loss in losses)
    return Outcome(Candidate("name"), runs)


def test_a_lead_is_more_than_the_tolerance_and_in_most_runs() -> None:
    assert is_clearly_ahead(outcome(4.9), outcome(5.0))
    assert not is_clearly_ahead(outcome(4.96), outcome(5.0))
    assert not is_clearly_ahead(outcome(5.0), outcome(4.9))
    assert is_clearly_ahead(outcome(4.9, 4.9, 5.1), outcome(5.0, 5.5, 5.0))
    assert not is_clearly_ahead(outcome(3.0, 5.1, 5.1), outcome(5.0, 5.0, 5.0))
    assert not is_clearly_ahead(outcome(3.0, 5.1), outcome(5.0, 5.0))
    assert not is_clearly_ahead(Outcome(Candidate("name"), error=WeightsInvalid("odd")), outcome(5.0))


def test_small_steps_add_up() -> None:
    best = BestSoFar()
    assert not best.start([])
    assert [best.challenge(outcome(loss)) for loss in (5.0, 4.97, 4.94, 4.91)] == [False, False, True, False]


def test_at_the_start_a_best_that_was_known_is_no_news() -> None:
    assert BestSoFar().start([outcome(4.0), outcome(5.0)])
    assert not BestSoFar().start([outcome(4.0)])
    assert not BestSoFar().start([outcome(4.99), outcome(5.0)])
    assert not BestSoFar().start([outcome(4.0, was_kept=True), outcome(5.0)])
    assert BestSoFar().start([outcome(4.0), outcome(4.01), outcome(5.0, was_kept=True)])


def test_after_the_start_the_best_that_was_known_is_the_one_to_beat() -> None:
    best = BestSoFar()
    assert not best.start([outcome(4.97), outcome(5.0, was_kept=True)])
    assert best.challenge(outcome(4.94))
