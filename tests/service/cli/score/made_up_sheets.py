"""Score sheets with made-up losses."""

from pathlib import Path

import numpy as np

from service.cli.score.held_out import HeldOut
from service.cli.score.question import Candidate, Question
from service.cli.score.score_sheet import Outcome, Run, ScoreSheet
from service.errors import WeightsInvalid


def sheet(*losses: float | None, names: str = "abcdef", num_skipped: int = 0) -> ScoreSheet:
    question = Question(
        candidates=tuple(Candidate(name) for name, _ in zip(names, losses, strict=False)),
        data=(HeldOut("data", Path("data"), 4),),
        seeds=(0,),
        num_skipped=num_skipped,
    )
    outcomes = (
        Outcome(candidate, error=WeightsInvalid("odd \x1b[2J words"))
        if loss is None
        else Outcome(candidate, (made_up_run(loss),))
        for candidate, loss in zip(question.candidates, losses, strict=True)
    )
    return ScoreSheet(question, tuple(outcomes))


def made_up_run(loss: float) -> Run:
    return Run(
        data="data",
        seed=0,
        loss=loss,
        cross_entropy=loss,
        sig_reg=0.0,
        embedding=np.ones(2, dtype=np.float32),
        distance=None,
        attends_to_future=False,
        num_predicted=3,
        num_tokens=1024,
        load_seconds=0.0,
        eval_seconds=0.0,
    )
