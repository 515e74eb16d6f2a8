"""The leaderboard of a watch in the data folder, where the status page of a service finds it."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

from service.cache.folder import claim_folder
from service.checksum import checksum_of
from service.cli.output_file import write_whole
from service.cli.printable import printable
from service.cli.score.question import Question
from service.cli.score.remarks import title_of
from service.cli.watch.leaderboard import Leaderboard, Row
from service.leaderboards import ENDING, FOLDER_NAME, MAX_ROWS, Board, FailedRow, RankedRow


class BoardFile:
    """One file for each watched folder and question: a watch that is started again goes on with its own."""

    def __init__(self, data_dir: Path, folder: Path, question: Question) -> None:
        self._data_dir = data_dir
        self._folder = folder
        asked = (
            os.path.abspath(folder),
            [os.path.abspath(data.name) for data in question.data],
            question.seeds,
        )
        name = checksum_of(repr(asked).encode(errors="surrogateescape"))
        self._path = data_dir / FOLDER_NAME / f"{name}{ENDING}"
        names = [replace(data, name=Path(data.name).name or data.name) for data in question.data]
        self._title = title_of(replace(question, data=tuple(names)))

    def write(self, board: Leaderboard) -> None:
        """Whole or not at all. Raises ForeignFolder, OSError."""
        claim_folder(self._data_dir)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._path, json.dumps(asdict(self._board(board)), allow_nan=False))

    def _board(self, board: Leaderboard) -> Board:
        return Board(
            folder=printable(self._folder.absolute().name),
            question=self._title,
            changed=time.time(),
            ranked=tuple(self._ranked(row) for row in board.ranked[:MAX_ROWS]),
            failed=tuple(self._failed(row) for row in board.failed[:MAX_ROWS]),
            num_ranked=len(board.ranked),
            num_failed=len(board.failed),
        )

    def _ranked(self, row: Row) -> RankedRow:
        outcome = row.outcome
        return RankedRow(
            name=self._name(row),
            loss=outcome.loss or 0.0,
            loss_spread=outcome.loss_spread,
            cross_entropy=outcome.mean(lambda run: run.cross_entropy),
            sig_reg=outcome.mean(lambda run: run.sig_reg),
            attends_to_future=outcome.attends_to_future,
        )

    def _failed(self, row: Row) -> FailedRow:
        error = row.outcome.error
        assert error is not None
        return FailedRow(self._name(row), error.full_code, error.title)

    def _name(self, row: Row) -> str:
        return printable(str(row.path.relative_to(self._folder)))
