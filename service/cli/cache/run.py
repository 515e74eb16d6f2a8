"""What `soma-eval cache` does."""

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from service.cache.folder import claim_folder
from service.cache.removal import remove_blobs, remove_partials
from service.cli.cache.contents import CachedFile, find, is_served, read_contents
from service.cli.exit_codes import ExitCode
from service.cli.standard_streams import write_out
from service.cli.usage import CommandFailed

_WIDTH = 100
"""A row takes 79: that of a terminal, with every checksum whole."""


def list_cache(data_dir: Path, *, json: bool) -> ExitCode:
    """Print every file, the last used first. Raises CommandFailed, OSError."""
    files = read_contents(data_dir)
    total = sum(file.size for file in files)
    if json:
        found = {"path": str(data_dir), "served": is_served(data_dir), "bytes": total}
        write_out(json_format.dumps(found | {"files": [file.to_json() for file in files]}) + "\n")
        return ExitCode.GOOD
    service = ", which a service uses now" if is_served(data_dir) else ""
    summary = f"{_files(len(files))}, {decimal(total)}, in {data_dir}{service}.\n"
    write_out((_table(files) if files else "") + summary)
    return ExitCode.GOOD


def remove(data_dir: Path, names: Sequence[str] | None, *, json: bool) -> ExitCode:
    """Remove files by the beginnings of their checksums, or all. Raises BadUsage, CommandFailed, OSError."""
    files = read_contents(data_dir)
    chosen = files if names is None else [find(files, name) for name in dict.fromkeys(names)]
    if chosen:
        claim_folder(data_dir)  # refuses a folder that is somebody else's
    complete = [file.name for file in chosen if file.kind == "complete"]
    try:
        kept = remove_blobs(data_dir, complete) if complete else []
    except TimeoutError as error:
        raise CommandFailed(str(error)) from error
    unfinished = [file.name for file in chosen if file.kind == "unfinished"]
    if unfinished and not remove_partials(data_dir, unfinished):
        kept += unfinished
    removed = [file for file in chosen if file.name not in kept]
    freed = sum(file.size for file in removed)
    if json:
        write_out(
            json_format.dumps({"removed": [f.name for f in removed], "kept": kept, "bytes": freed}) + "\n"
        )
    else:
        write_out("".join(f"in use, and kept: {name}\n" for name in kept))
        write_out(f"{_files(len(removed))} removed, {decimal(freed)}.\n")
    return ExitCode.MACHINE if kept else ExitCode.GOOD


def print_path(data_dir: Path, names: Sequence[str]) -> ExitCode:
    """Print where the data folder is, or files in it. Raises BadUsage, CommandFailed."""
    files = read_contents(data_dir) if names else []
    paths = [data_dir / "blobs" / find(files, name).name for name in names] or [data_dir]
    write_out("".join(f"{path.absolute()}\n" for path in paths))
    return ExitCode.GOOD


def _table(files: Sequence[CachedFile]) -> str:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("checksum", no_wrap=True)
    table.add_column("size", justify="right")
    table.add_column("last used")
    table.add_column("in use")
    for file in files:
        unfinished = "unfinished download" if file.kind == "unfinished" else file.name
        used = _age(time.time() - file.last_used)
        table.add_row(unfinished, decimal(file.size), used, "yes" if file.in_use else "")
    console = Console(width=_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"
