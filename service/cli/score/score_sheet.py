"""What the candidates of a question are worth: every run, and the numbers that decide, for people and scripts."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.cli.diagnosis import Finding
from service.cli.embedding_file import float32_numbers
from service.cli.score.question import Candidate, Question
from service.errors import ScoringError
from service.scoring.competition import is_near_tie, margin, pick_winner

Phase = Literal["waiting", "downloading", "loading", "evaluating", "done", "failed"]


@dataclass(frozen=True, slots=True)
class CandidateProgress:
    """How far one candidate has come."""

    index: int
    phase: Phase
    done: float = 0.0
    total: float | None = None
    """Batches of all its runs, or bytes while downloading; None where nobody knows."""


OnProgress = Callable[[CandidateProgress], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One candidate on one file of data with one seed."""

    data: str
    seed: int
    loss: float
    cross_entropy: float
    sig_reg: float
    embedding: NDArray[np.float32] = field(repr=False)
    """[embedding_dim]"""
    distance: float | None
    attends_to_future: bool
    num_predicted: int
    """Targets that are not padding."""
    num_tokens: int
    """All tokens, padding too: what the network divides the cross-entropy by."""
    load_seconds: float
    eval_seconds: float
    precision: str = ""
    device: str = ""
    """The devices that took part."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that made the numbers, by name."""
    numerics_version: str = ""
    computed_at: datetime | None = None
    """UTC."""
    result_cached: bool = False
    """Whether it was computed earlier, and kept."""
    token_cross_entropy: NDArray[np.float32] | None = field(default=None, repr=False)
    """[num_sequences, tokens] in nats, 0 for padding; None unless it was asked for."""

    @property
    def bits_per_byte(self) -> float:
        """The cross-entropy in bits, over the targets that are not padding."""
        return self.cross_entropy * self.num_tokens / max(1, self.num_predicted) / math.log(2)


@dataclass(frozen=True, slots=True)
class WeightsChecksums:
    """Blake2b-256 of a weights file, Base58."""

    file: str
    """Of the file as it lies there: what a commit promises, if this is what is published."""
    plain: str
    """Of the weights it decrypts to; the same without a key."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One candidate: a run for each file and seed, or why there is none."""

    candidate: Candidate
    runs: tuple[Run, ...] = ()
    error: ScoringError | None = None
    findings: tuple[Finding, ...] = ()
    """Why the weights were refused, as `check` tells it."""
    seconds: float = 0.0
    checksums: WeightsChecksums | None = None
    """Only where the question asks for them."""

    @property
    def loss(self) -> float | None:
        """The mean over the runs; None where there is an error."""
        return None if self.error else self.mean(lambda run: run.loss)

    @property
    def loss_spread(self) -> float:
        """The standard deviation of the losses over the runs; 0 for one."""
        losses = [run.loss for run in self.runs]
        return statistics.stdev(losses) if len(losses) > 1 else 0.0

    @property
    def distance(self) -> float | None:
        """The mean over the runs; None without a target."""
        distances = [run.distance for run in self.runs if run.distance is not None]
        return statistics.fmean(distances) if distances else None

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The mean over the runs."""
        mean: NDArray[np.float32] = np.mean([run.embedding for run in self.runs], axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    @property
    def attends_to_future(self) -> bool:
        """In any of the runs."""
        return any(run.attends_to_future for run in self.runs)

    @property
    def result_cached(self) -> bool:
        """Whether nothing was computed for it."""
        return bool(self.runs) and all(run.result_cached for run in self.runs)

    def mean(self, number: Callable[[Run], float]) -> float:
        """The mean of a number over the runs."""
        return statistics.fmean(number(run) for run in self.runs)


@dataclass(frozen=True, slots=True)
class ScoreSheet:
    """The answer to a question, and all that is read off it."""

    question: Question
    outcomes: tuple[Outcome, ...]
    """In the order of the candidates."""
    data_checksums: tuple[str, ...] = ()
    """Of each file of data, Blake2b-256 in Base58; empty where a service has read them."""

    @property
    def losses(self) -> list[float | None]:
        return [outcome.loss for outcome in self.outcomes]

    @property
    def winner(self) -> int | None:
        """Index of the lowest loss; None where no candidate has one."""
        return pick_winner(self.losses)

    @property
    def margin(self) -> float | None:
        """Loss of the second best less the winner's."""
        return margin(self.losses)

    @property
    def is_near_tie(self) -> bool:
        """Whether another validator, within the network's tolerance, could name another winner."""
        winner = self.winner
        return winner is not None and is_near_tie(self.losses[winner] or 0.0, self.margin)

    @property
    def num_wins(self) -> int:
        """In how many of the runs the winner's loss is below that of every other; a tie is no win."""
        winner = self.winner
        if winner is None:
            return 0
        best = self.outcomes[winner]
        others = [outcome for outcome in self.outcomes if outcome.runs and outcome is not best]
        return sum(all(run.loss < other.runs[i].loss for other in others) for i, run in enumerate(best.runs))

    @property
    def is_incomplete(self) -> bool:
        """Whether a candidate was not evaluated for reasons that say nothing of it."""
        return any(map(is_trouble, all_errors(self.outcomes)))

    def near_ties(self) -> list[int]:
        """Indices of the candidates that could win elsewhere, best first; empty where the best is clear of all."""
        order = self.best_first()
        if not self.is_near_tie:
            return []
        best = self.outcomes[order[0]].loss or 0.0
        return [i for i in order if is_near_tie(best, (self.outcomes[i].loss or 0.0) - best)]

    def best_first(self) -> list[int]:
        """Indices of the candidates with a loss, by it."""
        found = [(loss, i) for i, loss in enumerate(self.losses) if loss is not None]
        return [i for _, i in sorted(found)]

    def to_json(self) -> dict[str, Any]:
        """What `soma-eval score --json` prints."""
        return {
            "winner": self.winner,
            "margin": self.margin,
            "near_tie": self.is_near_tie,
            "wins": self.num_wins,
            "num_runs": self.question.num_runs,
            "models": [_model(outcome) for outcome in self.outcomes],
        }


def _model(outcome: Outcome) -> dict[str, Any]:
    numbers: dict[str, Any] = dict.fromkeys(
        (
            *("loss", "cross_entropy", "sig_reg", "embedding", "distance"),
            *("bits_per_byte", "loss_spread", "attends_to_future"),
        )
    )
    if outcome.error is None:
        numbers = {
            "loss": outcome.loss,
            "cross_entropy": outcome.mean(lambda run: run.cross_entropy),
            "sig_reg": outcome.mean(lambda run: run.sig_reg),
            "embedding": float32_numbers(outcome.embedding),
            "distance": outcome.distance,
            "bits_per_byte": outcome.mean(lambda run: run.bits_per_byte),
            "loss_spread": outcome.loss_spread,
            "attends_to_future": outcome.attends_to_future,
        }
    return {
        "weights": outcome.candidate.name,
        "live": outcome.candidate.is_live,
        **numbers,
        "error": error_json(outcome),
        "seconds": outcome.seconds,
        "result_cached": outcome.result_cached,
        "runs": [_run(run) for run in outcome.runs] if outcome.error is None else [],
    }


def _run(run: Run) -> dict[str, Any]:
    names = ("data", "seed", "loss", "cross_entropy", "sig_reg", "distance", "bits_per_byte")
    facts = ("attends_to_future", "load_seconds", "eval_seconds", "precision", "device")
    origin = ("numerics_version", "result_cached")
    computed_at = None if run.computed_at is None else run.computed_at.isoformat()
    return {name: getattr(run, name) for name in (*names, *facts, *origin)} | {"computed_at": computed_at}


def error_json(outcome: Outcome) -> dict[str, Any] | None:
    """Why there is no loss, for scripts; None where there is one."""
    error = outcome.error
    if error is None:
        return None
    return {
        "code": error.full_code,
        "detail": error.detail,
        "fault": error.fault,
        "retryable": error.retryable,
        "findings": [asdict(finding) for finding in outcome.findings],
    }


def all_errors(outcomes: Sequence[Outcome]) -> list[ScoringError]:
    """Of the candidates that have one."""
    return [outcome.error for outcome in outcomes if outcome.error is not None]


def is_trouble(error: ScoringError) -> bool:
    """Whether it says nothing of the weights: another try may give a number."""
    return error.retryable or error.fault == "service"
