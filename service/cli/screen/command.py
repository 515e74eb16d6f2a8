"""`soma-eval screen`: its flags."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import ApiKeyFlag, SeedFlag, UrlFlag, check_url_flag


@setting_flags(
    "device", "small_model", "architecture", "precision", "data_dir", "allow_http", "allow_private_addresses"
)
def screen(
    models: Annotated[
        Path,
        Option(
            help='A JSON list of models: {"id", "url", "checksum", "size", "decryption_key"}; url may be a path.'
        ),
    ],
    data: Annotated[
        str,
        Option(help="A file, a folder (each file is a piece), a .jsonl file, or - for JSON lines on stdin."),
    ],
    targets: Annotated[
        Path | None,
        Option(help='A JSON list of targets: {"id", "embedding", "distance_threshold", "model_ids"}.'),
    ] = None,
    seed: SeedFlag = 0,
    on_hit: Annotated[
        str | None, Option(help="A shell command that gets the line of every hit as JSON on its stdin.")
    ] = None,
    report: Annotated[
        Path | None, Option(help="Write an HTML page that shows how near the pieces came to the targets.")
    ] = None,
    url: UrlFlag = None,
    api_key: ApiKeyFlag = None,
    *,
    flags: dict[str, Any],
) -> int:
    """A line of JSON for each piece as soon as it is known: every model's loss, the winner of each target, its
    distance, and whether that is a hit. The last line is a summary. A piece or a model that fails has its error in
    the lines, and costs the others nothing.
    Exit code: 0 good, 1 no piece has a loss, 2 usage, 3 the machine or network is at fault.

    \b
    Every file of a folder against the open targets:
      soma-eval screen --models models.json --targets targets.json --data pieces/
    JSON lines, as {"text": "..."} or {"id": "...", "data": BASE64}, and a command for every hit:
      soma-eval screen --models models.json --targets targets.json --data - \\
        --on-hit 'cat >> hits.jsonl' < pieces.jsonl
    """
    check_url_flag(url, flags)
    settings = settings_from(flags)
    from service.cli.screen.run import run_screen

    return run_screen(
        models=models,
        targets=targets,
        data=data,
        seed=seed,
        on_hit=on_hit,
        report=report,
        url=url,
        api_key=api_key,
        settings=settings,
    )
