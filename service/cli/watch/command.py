"""`soma-eval watch`: its flags."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import JsonFlag
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
    data: Annotated[str, Option(help="A held-out file, a folder of them, a FIFO, or - for standard input.")],
    seed: Annotated[int, Option(help="Seed of the SIGReg noise, 0 to 2^64 - 1.")] = 0,
    seeds: Annotated[
        int, Option(min=1, max=1 << 16, help="Evaluate with this many seeds, counting from --seed.")
    ] = 1,
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
    url: Annotated[
        str | None,
        Option(help="URL of a running service that does the work; the files are served to it from here."),
    ] = None,
    api_key: Annotated[
        str | None, Option(envvar="SOMA_EVAL_API_KEY", help="API key of that service, if it asks for one.")
    ] = None,
    no_cache: Annotated[
        bool, Option("--no-cache", help="Compute anew, even what is kept from an earlier evaluation.")
    ] = False,
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
    if url is not None and flags:
        raise BadUsage("--url leaves device, model and data folder to the service: leave out their flags")
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
