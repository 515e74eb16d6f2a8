"""`soma-eval watch`: its flags."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import (
    ApiKeyFlag,
    HeldOutData,
    JsonFlag,
    NoCacheFlag,
    SeedFlag,
    SeedsFlag,
    UrlForFilesFlag,
    check_url_flag,
)
from service.cli.standard_streams import complain
from service.cli.usage import BadUsage


@setting_flags("device", "small_model", "architecture", "precision", "data_dir")
def watch(
    folder: Annotated[
        Path,
        Argument(
            metavar="DIR", help="Where checkpoints (*.safetensors) appear, or below.", show_default=False
        ),
    ],
    data: HeldOutData,
    seed: SeedFlag = 0,
    seeds: SeedsFlag = 1,
    once: Annotated[bool, Option("--once", help="Score what is there, and end.")] = False,
    json: JsonFlag = False,
    on_best: Annotated[
        str | None,
        Option(
            metavar="CMD",
            help="Shell command to run when a checkpoint leads by more than validators may differ by, and in most "
            "runs; it gets the result as JSON on its standard input.",
        ),
    ] = None,
    report: Annotated[
        Path | None, Option(help="Keep an HTML page up to date that shows the loss along training.")
    ] = None,
    url: UrlForFilesFlag = None,
    api_key: ApiKeyFlag = None,
    no_cache: NoCacheFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """The newest first; a file that is still being written is waited for, one that is replaced is scored anew.
    What was computed before is kept, so a restart computes nothing twice. Ctrl-C ends it.
    Exit code of --once: 0 good, 1 no weights have a loss, 2 usage, 3 a file could not be evaluated.

    \b
    Beside a training run:
      soma-eval watch checkpoints --data held-out.txt --seeds 3
    Copy every new best, whatever its name is:
      soma-eval watch checkpoints --data held-out.txt \\
        --on-best 'cp -- "$(jq -r .weights)" best.safetensors'
    From a script, a line for each checkpoint:
      soma-eval watch checkpoints --data held-out.txt --once --json
    """
    check_url_flag(url, flags)
    if not folder.is_dir():
        raise BadUsage(f"{folder}: {'this is no folder' if folder.exists() else 'there is no such folder'}")
    settings = settings_from(flags)
    if not once:  # said before anything is loaded, which takes a moment
        complain(f"watching {folder} for *.safetensors; Ctrl-C ends it")
    from service.cli.watch.run import WatchOptions, run_watch

    options = WatchOptions(
        folder=folder,
        data=data,
        seed=seed,
        seeds=seeds,
        once=once,
        json=json,
        on_best=on_best,
        report=report,
        url=url,
        api_key=api_key,
        no_cache=no_cache,
    )
    return run_watch(options, settings)
