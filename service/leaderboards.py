"""The leaderboards of `soma-eval watch` as files in the data folder: a watch writes one, the status page shows them.

They hold names of checkpoints and numbers: no path above the watched folder, no URL, and no text of the weights.
"""

from dataclasses import dataclass
from typing import Literal

FOLDER_NAME = "leaderboards"
ENDING = ".json"
MAX_ROWS = 50
"""With a loss, and as many without, in a file."""


@dataclass(frozen=True, slots=True)
class RankedRow:
    """One checkpoint that has a loss: the means over its runs."""

    name: str
    """Below the watched folder."""
    loss: float
    loss_spread: float
    """Standard deviation over the runs; 0 for one."""
    cross_entropy: float
    sig_reg: float
    attends_to_future: bool


@dataclass(frozen=True, slots=True)
class FailedRow:
    """One checkpoint that has none."""

    name: str
    code: str
    """Of the error, like its title."""
    title: str


@dataclass(frozen=True, slots=True)
class Board:
    """The leaderboard of one watch."""

    folder: str
    """Name of the watched folder, without what lies above it."""
    question: str
    """What every checkpoint is evaluated on, in words."""
    changed: float
    """When it changed last, in seconds since 1970."""
    ranked: tuple[RankedRow, ...]
    """Best first, MAX_ROWS at most."""
    failed: tuple[FailedRow, ...]
    """The latest first, MAX_ROWS at most."""
    num_ranked: int
    """In all, like the next."""
    num_failed: int
    format: Literal[1] = 1
    """Of the file."""
