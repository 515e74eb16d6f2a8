"""The store that `--to` names."""

from pathlib import Path

from service.cli.publish.file_store import FileStore
from service.cli.publish.store import Store
from service.cli.usage import BadUsage

_INSTEAD = {
    "gs": "Google's storage takes s3:// too, with AWS_ENDPOINT_URL=https://storage.googleapis.com and an HMAC key",
    "r2": "R2 takes s3://, with AWS_ENDPOINT_URL=https://ACCOUNT.r2.cloudflarestorage.com",
    "http": "give the place to write to; the address to read from is --public-url",
    "https": "give the place to write to; the address to read from is --public-url",
}


def open_store(target: str) -> Store:
    """The store that a URL names: s3://BUCKET/KEY or file://PATH. Raises BadUsage."""
    scheme, separator, rest = target.partition("://")
    if scheme == "file" and rest:
        return FileStore(Path(rest))
    bucket, _, key = rest.partition("/")
    if scheme == "s3" and bucket and key and not key.endswith("/"):
        try:
            from service.cli.publish.s3_store import S3Store
        except ModuleNotFoundError:
            raise BadUsage("s3:// needs boto3: pip install 'soma-eval[publish]'") from None
        return S3Store(bucket, key)
    if separator and scheme in _INSTEAD:
        raise BadUsage(f"--to {scheme}://: {_INSTEAD[scheme]}")
    raise BadUsage("--to: give s3://BUCKET/KEY or file://PATH")
