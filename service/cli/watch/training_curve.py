"""Loss along training: what the report of a watch shows that a comparison does not."""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from service.cli.charts import Line, line_chart
from service.cli.watch.leaderboard import Row

_NUMBER = re.compile(r"\d+")


def training_curve(rows: Sequence[Row], colours: Sequence[int]) -> str:
    """Loss and cross-entropy of the checkpoints as a figure, in two colours; empty for fewer than two of them.

    They lie at the last number in their paths, usually the training step, where those grow with the files' times;
    else evenly, oldest first.
    """
    in_time = sorted((row for row in rows if row.outcome.error is None), key=lambda row: row.state.mtime_ns)
    if len(in_time) < 2:
        return ""
    steps = steps_of(in_time)
    x = np.array(steps or range(1, len(in_time) + 1), dtype=np.float64)
    losses = [row.outcome.loss or 0.0 for row in in_time]
    cross_entropies = [row.outcome.mean(lambda run: run.cross_entropy) for row in in_time]
    lines = [
        Line(name, colour, np.array(values))
        for name, colour, values in zip(
            ("loss", "cross-entropy"), colours, (losses, cross_entropies), strict=True
        )
    ]
    label = "the number in the file's name" if steps else "checkpoint, oldest first"
    return line_chart("Along training", x, lines, label, "loss (upper) and cross-entropy")


def steps_of(in_time: Sequence[Row]) -> list[int] | None:
    """The last number in each path; None where one has none, or they do not grow from one to the next."""
    numbers = [_NUMBER.findall(str(row.path.with_suffix(""))) for row in in_time]
    if not all(numbers):
        return None
    steps = [int(found[-1]) for found in numbers]
    return steps if all(a < b for a, b in itertools.pairwise(steps)) else None
