"""A watch of a folder as tests run it: quick looks, and workers without processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service.cli.score.held_out import find_data
from service.cli.score.local import open_workers
from service.cli.score.question import Question
from service.cli.watch.checkpoint_folder import Pace
from service.cli.watch.display import NothingYet
from service.cli.watch.leaderboard import Leaderboard, Row
from service.cli.watch.watching import Watch
from service.config import ExplicitSettings
from tests.recipe import (
    SMALL_CONFIG,
    golden_cases,
    golden_competitions,
    make_data,
    make_weights,
    safetensors_bytes,
)

QUICK = Pace(poll_seconds=0.02, settle_seconds=0.1)
_SECONDS = 60.0
_LOSSES_BEST_FIRST = (0, 2, 1)
"""Of the golden competition: the second is a near tie with the first, the third is far behind."""

GOOD, NEAR, BAD = (
    safetensors_bytes(make_weights(SMALL_CONFIG, golden_competitions()["competition-three"].models[i]))
    for i in _LOSSES_BEST_FIRST
)


class Shown(NothingYet):
    """Keeps what a watch shows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.names: list[str] = []

    def scored(self, row: Row, board: Leaderboard) -> None:
        self.rows.append(board.json(row))
        self.names.append(row.path.name)

    async def next_row(self) -> dict[str, Any]:
        """The next one that is shown from now on."""
        count = len(self.rows)
        async with asyncio.timeout(_SECONDS):
            while len(self.rows) == count:
                await asyncio.sleep(0.01)
        return self.rows[count]


@asynccontextmanager
async def watching(
    folder: Path, kept: Path, hooks: list[str] | None = None, pace: Pace = QUICK
) -> AsyncIterator[tuple[Watch, Shown]]:
    """A watch that goes on for the length of the block. What it keeps lies in `kept`."""
    data = kept.with_suffix(".data")
    data.write_bytes(make_data(golden_cases()["small-short"].data))
    settings = ExplicitSettings(small_model=True, device=("cpu",), data_dir=kept)

    async def run_hook(line: str) -> None:
        if hooks is not None:
            hooks.append(line)

    with find_data(str(data)) as found:
        async with open_workers(settings) as workers:
            shown = Shown()
            question = Question((), found.files, seeds=(0, 1))
            watch = Watch(question, folder, workers.score, shown, run_hook=run_hook, pace=pace)
            task = asyncio.create_task(watch.run(once=False))
            try:
                yield watch, shown
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
