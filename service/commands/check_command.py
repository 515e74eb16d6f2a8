"""`soma-eval check`: from the flags to a line for each finding, and an exit code."""

import asyncio
import json as json_format
import sys
from pathlib import Path

from service.commands.check import Checked, check, parse_expected
from service.commands.local_file import require_regular_file
from service.commands.question import is_url, parse_keys
from service.commands.terminal import byte_bar, print_findings
from service.config import Settings
from service.exit_codes import ExitCode


def run_check(
    place: str,
    key: str | None,
    key_file: Path | None,
    checksum: str | None,
    size: int | None,
    *,
    full: bool,
    json: bool,
    settings: Settings,
) -> int:
    """Returns the exit code: 0 when nothing was found. Raises BadUsage, ScoringError or OSError."""
    if not is_url(place):
        require_regular_file(Path(place), or_url=True)
    keys = parse_keys([] if key is None else [key], [] if key_file is None else [key_file])
    expected = parse_expected(keys[0] if keys else None, checksum, size)
    with byte_bar("downloading" if is_url(place) else "reading") as on_bytes:
        checked = asyncio.run(check(place, expected, settings, full=full, on_bytes=on_bytes))
    if json:
        sys.stdout.write(json_format.dumps(checked.to_json()) + "\n")
    else:
        _print(checked)
    return ExitCode.AT_FAULT if checked.findings else ExitCode.GOOD


def _print(checked: Checked) -> None:
    print_findings(checked.findings, sys.stdout)
    write = sys.stdout.write
    for remark in checked.remarks:
        write(f"· {remark}\n")
    if checked.checksum is not None:
        write(f"· checksum {checked.checksum}\n")
    if checked.size is not None:
        write(f"· size {checked.size}\n")
    if checked.findings:
        count = len(checked.findings)
        write(f"Refused: {count} finding{'s' * (count > 1)}. Do not commit this.\n")
    elif checked.is_whole:
        write(f"Accepted: {checked.num_tensors} tensors in order, every byte read.\n")
    else:
        write(f"Accepted, as far as the header tells: {checked.num_tensors} tensors in order.\n")
