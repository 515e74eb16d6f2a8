"""`soma-eval checksum`: the network's checksum and size of a file."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from service.cli.encryption import Commitment, commitment_of
from service.cli.exit_codes import ExitCode
from service.cli.input_file import require_regular_file
from service.cli.printable import printable
from service.cli.progress_bars import byte_bar
from service.cli.setting_flags import setting_flags
from service.cli.shared_flags import JsonFlag
from service.cli.standard_streams import write_out


@setting_flags(ignored=("device", "small_model", "architecture", "precision", "data_dir"))
def checksum(
    files: Annotated[list[Path], Argument(metavar="FILE...", help="Data, or weights as published.")],
    json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Blake2b-256 in Base58 of the bytes as they lie there (of weights: the encrypted file), the size in bytes, the
    name. They are what `data_checksum` and `data_size` of a submission are.
    """
    for path in files:
        require_regular_file(path)
    for path in files:
        found = _commitment(path)
        line = {"path": str(path), "checksum": found.checksum, "size": found.size}
        write_out(
            f"{json_format.dumps(line)}\n"
            if json
            else f"{found.checksum}  {found.size}  {printable(str(path))}\n"
        )
    return ExitCode.GOOD


def _commitment(path: Path) -> Commitment:
    size = path.stat().st_size
    with byte_bar(path.name) as report:
        return commitment_of(path, lambda done: report(done, size))
