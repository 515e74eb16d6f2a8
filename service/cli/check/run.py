"""What `soma-eval check` does: a line for each finding, and an exit code."""

import asyncio
import json as json_format
from pathlib import Path

from service.cli.check.check_weights import check_weights, parse_expected
from service.cli.diagnosis import Expected, finding_lines
from service.cli.exit_codes import ExitCode
from service.cli.header_check import Checked
from service.cli.input_file import require_regular_file
from service.cli.keys import parse_keys
from service.cli.progress_bars import byte_bar
from service.cli.standard_streams import write_out
from service.cli.urls import is_url
from service.config import Settings


def run_check(
    location: str,
    key: str | None,
    key_file: Path | None,
    checksum: str | None,
    size: int | None,
    *,
    full: bool,
    allow_non_finite: bool,
    json: bool,
    settings: Settings,
) -> int:
    """Returns the exit code: 0 when nothing was found. Raises BadUsage, ScoringError or OSError."""
    if not is_url(location):
        require_regular_file(Path(location), or_url=True)
    keys = parse_keys([] if key is None else [key], [] if key_file is None else [key_file])
    expected = parse_expected(keys[0] if keys else None, checksum, size)
    with byte_bar("downloading" if is_url(location) else "reading") as on_bytes:
        checked = asyncio.run(
            check_weights(
                *(location, expected, settings),
                full=full,
                allow_non_finite=allow_non_finite,
                on_bytes=on_bytes,
            )
        )
    write_out(json_format.dumps(checked.to_json()) + "\n" if json else _text(checked, expected))
    return ExitCode.AT_FAULT if checked.findings else ExitCode.GOOD


def _text(checked: Checked, expected: Expected) -> str:
    """A line for each finding and remark, then the conclusion."""
    lines = [*finding_lines(checked.findings), *(f"· {remark}" for remark in checked.remarks)]
    if checked.checksum is not None:
        lines.append(f"· checksum {checked.checksum}")
    if checked.size is not None:
        lines.append(f"· size {checked.size}")
    return "\n".join([*lines, _conclusion(checked, expected)]) + "\n"


def _conclusion(checked: Checked, expected: Expected) -> str:
    if checked.findings:
        count = len(checked.findings)
        return f"Refused: {count} finding{'s' * (count > 1)}. Do not commit this."
    tensors = f"{checked.num_tensors} tensors in order"
    if not checked.is_whole:
        return (
            f"The header is in order: {tensors}. The checksum and the values were not checked: "
            "add --full before you commit."
        )
    if expected.checksum is None:
        return (
            f"Accepted: {tensors}, every byte read. No --checksum was given: compare the one above with that "
            "which `encrypt` printed."
        )
    return f"Accepted: {tensors}, every byte read, the checksum is the one given."
