"""Flags that mean the same for several commands and are no settings."""

from typing import Annotated

from typer import Option

JsonFlag = Annotated[bool, Option("--json", help="Print JSON, for scripts.")]
NonFiniteFlag = Annotated[
    bool,
    Option(
        "--allow-non-finite",
        help="Accept weights that hold NaN or infinity: their loss is hardly ever finite.",
    ),
]
