"""Flags that mean the same for several commands and are no settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from service.cli.urls import host_of
from service.cli.usage import BadUsage

JsonFlag = Annotated[bool, Option("--json", help="Print JSON, for scripts.")]
NonFiniteFlag = Annotated[
    bool,
    Option(
        "--allow-non-finite",
        help="Accept weights that hold NaN or infinity: their loss is hardly ever finite.",
    ),
]

# -- the question ----------------------------------------------------------------------------------------------

HeldOutData = Annotated[
    str, Option(help="A held-out file, a folder of them, a FIFO, or - for standard input.")
]
SeedFlag = Annotated[int, Option(help="Seed of the SIGReg noise, 0 to 2^64 - 1.")]
SeedsFlag = Annotated[
    int,
    Option(
        min=1, max=1 << 16, help="Repeat with this many seeds, counting from --seed: does the ranking hold?"
    ),
]
NoCacheFlag = Annotated[
    bool, Option("--no-cache", help="Compute anew, even what is kept from an earlier evaluation.")
]

# -- a service that does the work ------------------------------------------------------------------------------

UrlFlag = Annotated[str | None, Option(help="URL of a running service that does the work.")]
UrlForFilesFlag = Annotated[
    str | None,
    Option(help="URL of a running service that does the work; local files are served to it from here."),
]
ApiKeyFlag = Annotated[
    str | None, Option(envvar="SOMA_EVAL_API_KEY", help="API key of that service, if it asks for one.")
]


def check_url_flag(url: str | None, flags: Mapping[str, Any]) -> None:
    """Raises BadUsage for what is no URL, and where a service does the work but a flag says how it is done here."""
    if url is not None and flags:
        raise BadUsage("--url leaves device, model and data folder to the service: leave out their flags")
    if url is not None:
        host_of(url)


# -- a new key, and what goes with it --------------------------------------------------------------------------

NewKeyFile = Annotated[
    Path | None, Option(help="Write the new key here, for you alone to read, and do not print it.")
]
CommittedEmbedding = Annotated[
    Path | None,
    Option(
        help="The file of `score --embedding-out` for these very weights: checked, and put into the commit."
    ),
]
