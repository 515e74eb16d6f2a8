"""Why `score` has no number for a candidate: what `check` finds in the same file, with what to do about it."""

from pathlib import Path

from service.commands.check import check
from service.commands.diagnosis import Expected, Finding
from service.commands.question import Candidate
from service.config import Settings
from service.errors import ScoringError


async def why_refused(path: Path, candidate: Candidate, settings: Settings) -> tuple[Finding, ...]:
    """Every reason there is; none where only the verdict is known. `path` is where the candidate's file lies."""
    try:
        checked = await check(str(path), Expected(candidate.key), settings)
    except (OSError, ScoringError):
        return ()
    return tuple(checked.findings)
