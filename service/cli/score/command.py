"""`soma-eval score`: its flags."""

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
from service.cli.usage import BadUsage


@setting_flags(
    "device", "small_model", "architecture", "precision", "data_dir", "allow_http", "allow_private_addresses"
)
def score(
    data: HeldOutData,
    files: Annotated[
        list[str] | None,
        Argument(metavar="WEIGHTS...", help="Candidates: files or URLs.", show_default=False),
    ] = None,
    weights: Annotated[
        list[str] | None,
        Option(help="The same as an option, repeatable; also a glob in quotes. They come after WEIGHTS."),
    ] = None,
    seed: SeedFlag = 0,
    seeds: SeedsFlag = 1,
    target: Annotated[
        Path | None, Option(help="A target embedding: a JSON list of numbers, or .npy.")
    ] = None,
    key: Annotated[
        list[str] | None,
        Option(
            envvar="SOMA_EVAL_KEY",
            help="In Base58: one for all weights, or one for each in order, none for unencrypted ones. "
            "It lands in the shell's history: prefer --key-file.",
        ),
    ] = None,
    key_file: Annotated[
        list[Path] | None, Option(help="The same, from files, as `encrypt` writes them.")
    ] = None,
    against: Annotated[
        Path | None,
        Option(
            help="Is it worth the fee? A JSON list of the live models' manifests, as the SDK's get_model_manifests "
            "gives them, or of paths."
        ),
    ] = None,
    json: JsonFlag = False,
    report: Annotated[
        Path | None, Option(help="Write an HTML page that shows where the candidates differ.")
    ] = None,
    embedding_out: Annotated[
        Path | None,
        Option(
            help="Write the embedding, with the checksum of its weights: for one file, one seed. `encrypt` takes it."
        ),
    ] = None,
    url: UrlForFilesFlag = None,
    api_key: ApiKeyFlag = None,
    no_cache: NoCacheFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """One candidate that fails costs the others nothing. Several files or seeds: every number is the mean over them.
    Exit code: 0 good, 1 no weights have a loss, 2 usage, 3 a candidate could not be evaluated (machine or network).

    \b
    Two checkpoints on one file:
      soma-eval score a.safetensors b.safetensors --data held-out.txt
    All checkpoints, every file of a folder, five seeds, and a page to look at:
      soma-eval score checkpoints/*.safetensors --data held-out/ \\
        --seeds 5 --report score.html
    The embedding to commit with exactly this file:
      soma-eval score best.safetensors --data held-out.txt \\
        --embedding-out best.embedding.json
    Would it win against the models that are live?
      soma-eval score best.safetensors --data held-out/ --seeds 5 \\
        --against live.json
    The encrypted file, as it will be published, for a script:
      soma-eval score best.enc --key-file best.key --data held-out.txt --json
    """
    names = [*(files or []), *(weights or [])]
    if not names:
        raise BadUsage("no weights are given: name them, as in `soma-eval score FILE --data FILE`.")
    check_url_flag(url, flags)
    settings = settings_from(flags)
    from service.cli.score.run import run_score

    return run_score(
        weights=names,
        data=data,
        seed=seed,
        seeds=seeds,
        target=target,
        key=key,
        key_file=key_file,
        against=against,
        json=json,
        report=report,
        embedding_out=embedding_out,
        url=url,
        api_key=api_key,
        no_cache=no_cache,
        settings=settings,
    )
