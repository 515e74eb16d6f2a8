"""When a checkpoint is a new best: ahead by more than validators may differ by, and in most runs."""

from collections.abc import Sequence

from service.cli.score.score_sheet import Outcome
from service.scoring.competition import is_near_tie


def is_clearly_ahead(outcome: Outcome, other: Outcome) -> bool:
    """Whether it leads the other by more than the network's tolerance, and in more than half of the runs."""
    if outcome.loss is None or other.loss is None:
        return False
    lead = other.loss - outcome.loss
    wins = sum(run.loss < its.loss for run, its in zip(outcome.runs, other.runs, strict=True))
    return lead > 0 and not is_near_tie(outcome.loss, lead) and 2 * wins > len(outcome.runs)


class BestSoFar:
    """Remembers the one to beat: the last that was a new best, so that many small steps make one, too.

    What is there at the start is compared within itself first: what was known before is no news.
    """

    def __init__(self) -> None:
        self._to_beat: Outcome | None = None

    def start(self, ranked: Sequence[Outcome]) -> bool:
        """Take what was there at the start, best first. Returns whether the first of them is a new best."""
        if not ranked:
            return False
        best = ranked[0]
        others = [other for other in ranked if other.result_cached] or ranked[1:]
        if best.result_cached or not others:
            self._to_beat = best
            return False
        is_new = is_clearly_ahead(best, others[0])
        self._to_beat = best if is_new or not others[0].result_cached else others[0]
        return is_new

    def challenge(self, best: Outcome) -> bool:
        """Whether the best of all is a new best. The first checkpoint of all is none: it leads nothing."""
        if self._to_beat is None:
            self._to_beat = best
            return False
        if not is_clearly_ahead(best, self._to_beat):
            return False
        self._to_beat = best
        return True
