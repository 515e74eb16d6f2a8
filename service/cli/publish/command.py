"""`soma-eval publish`: its flags."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import CommittedEmbedding, JsonFlag, NewKeyFile, NonFiniteFlag


@setting_flags(
    *("small_model", "architecture", "data_dir", "allow_http", "allow_private_addresses"),
    ignored=("device", "precision"),
)
def publish(
    weights: Annotated[Path, Argument(help="A safetensors file, not encrypted.", show_default=False)],
    to: Annotated[
        str,
        Option(metavar="s3://BUCKET/KEY|file://PATH", help="Where to write; nothing there is overwritten."),
    ],
    public_url: Annotated[
        str | None,
        Option(help="URL at which validators will fetch it: what arrived is then checked from there."),
    ] = None,
    key_file: NewKeyFile = None,
    embedding: CommittedEmbedding = None,
    allow_non_finite: NonFiniteFlag = False,
    json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> int:
    """No encrypted copy is made on this machine. After an interruption the same command sends what has not arrived.
    At the end every byte is read back and compared. Credentials and endpoint are those of boto3: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, profiles. s3:// needs `pip install 'soma-eval[publish]'`.

    \b
      soma-eval publish best.safetensors --to s3://bucket/best.enc \\
        --public-url https://files.example.com/best.enc --key-file best.key
    Into a folder that a web server serves:
      soma-eval publish best.safetensors --to file:///srv/www/best.enc --key-file best.key
    """
    settings = settings_from(flags)
    from service.cli.publish.run import run_publish

    return run_publish(
        weights,
        to,
        public_url,
        key_file,
        embedding,
        allow_non_finite=allow_non_finite,
        json=json,
        settings=settings,
    )
