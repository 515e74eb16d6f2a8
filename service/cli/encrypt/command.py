"""`soma-eval encrypt`: its flags."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import CommittedEmbedding, JsonFlag, NewKeyFile, NonFiniteFlag


@setting_flags("small_model", "architecture", ignored=("device", "precision", "data_dir"))
def encrypt(
    weights: Annotated[Path, Argument(help="A safetensors file.", show_default=False)],
    output: Annotated[
        Path, Option("-o", "--output", help="File to write; an existing one is never overwritten.")
    ],
    key: Annotated[
        str | None,
        Option(
            help="Use this key, Base58, in place of a new one. It lands in the shell's history, "
            "and a key is for one file only."
        ),
    ] = None,
    key_file: NewKeyFile = None,
    embedding: CommittedEmbedding = None,
    allow_non_finite: NonFiniteFlag = False,
    json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Prints the key, the checksum and the size, and the next steps with soma-sdk.
    Weights that the network would refuse are refused here, before anything is written.

    \b
    First the embedding of exactly this file, then the file; the key is for you alone, and is not printed:
      soma-eval score best.safetensors --data held-out.txt \\
        --embedding-out best.embedding.json
      soma-eval encrypt best.safetensors -o best.enc --key-file best.key \\
        --embedding best.embedding.json
    """
    settings = settings_from(flags)
    from service.cli.encrypt.run import run_encrypt

    return run_encrypt(
        weights,
        output,
        key,
        key_file,
        embedding,
        allow_non_finite=allow_non_finite,
        json=json,
        settings=settings,
    )
