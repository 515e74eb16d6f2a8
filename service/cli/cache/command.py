"""`soma-eval cache`: its flags."""

from enum import StrEnum
from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import JsonFlag
from service.cli.usage import BadUsage


class Action(StrEnum):
    """What to do with the cache."""

    LS = "ls"
    RM = "rm"
    PATH = "path"


@setting_flags("data_dir", ignored=("device", "small_model", "architecture", "precision"))
def cache(
    action: Annotated[Action, Argument(help="ls: what lies there; rm: remove; path: where it is.")],
    names: Annotated[
        list[str] | None,
        Argument(metavar="CHECKSUM...", help="Of rm and path: files, by the beginning of their checksum."),
    ] = None,
    everything: Annotated[bool, Option("--all", help="Of rm: all that is not in use.")] = False,
    json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """The downloaded files in the data folder, as published. `rm` may run beside a service that uses the folder: what a
    request there has in use stays, and is named (exit code 3).

    \b
      soma-eval cache ls
      soma-eval cache rm 7avo7diL
      soma-eval cache rm --all
    """
    settings = settings_from(flags)
    if everything and (names or action is not Action.RM):
        raise BadUsage("--all goes with rm alone, and without names")
    if action is Action.LS and names:
        raise BadUsage("ls takes no names")
    if action is Action.RM and not names and not everything:
        raise BadUsage("rm: give the checksums that `soma-eval cache ls` prints, or --all")
    from service.cli.cache import run

    match action:
        case Action.LS:
            return run.list_cache(settings.data_dir, json=json)
        case Action.RM:
            return run.remove(settings.data_dir, names, json=json)
        case Action.PATH:
            return run.print_path(settings.data_dir, names or [])
