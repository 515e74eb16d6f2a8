"""`soma-eval check`: its flags."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import JsonFlag, NonFiniteFlag


@setting_flags(
    *("small_model", "architecture", "data_dir", "allow_http", "allow_private_addresses"),
    ignored=("device", "precision"),
)
def check(
    location: Annotated[str, Argument(metavar="URL|FILE", help="What was uploaded, or will be.")],
    key: Annotated[
        str | None,
        Option(envvar="SOMA_EVAL_KEY", help="In Base58. It lands in the shell's history: prefer --key-file."),
    ] = None,
    key_file: Annotated[
        Path | None, Option(help="The key in a file: keeps it out of the shell's history.")
    ] = None,
    checksum: Annotated[str | None, Option(help="Checksum to expect, as `encrypt` printed it.")] = None,
    size: Annotated[
        int | None, Option(min=0, help="Size to expect in bytes, as `encrypt` printed it.")
    ] = None,
    full: Annotated[
        bool, Option("--full", help="Read every byte: verify the checksum and find NaN and infinity.")
    ] = False,
    allow_non_finite: NonFiniteFlag = False,
    json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Downloads the header alone, which shows whether the upload is whole and has the right tensors and key.
    Before you commit, add --full: only that verifies the checksum and looks at the values.

    \b
      soma-eval check https://host/best.enc --key-file best.key \\
        --checksum 9VzTjpe... --size 4838783240
    """
    settings = settings_from(flags)
    from service.cli.check.run import run_check

    return run_check(
        location,
        key,
        key_file,
        checksum,
        size,
        full=full,
        allow_non_finite=allow_non_finite,
        json=json,
        settings=settings,
    )
