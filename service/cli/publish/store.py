"""Where published weights go: what every kind of store can do, and which one `--to` names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.cli.usage import BadUsage

_INSTEAD = {
    "gs": "Google's storage takes s3:// too, with AWS_ENDPOINT_URL=https://storage.googleapis.com and an HMAC key",
    "r2": "R2 takes s3://, with AWS_ENDPOINT_URL=https://ACCOUNT.r2.cloudflarestorage.com",
    "http": "give the place to write to; the address to read from is --public-url",
    "https": "give the place to write to; the address to read from is --public-url",
}


class StoreFailed(Exception):
    """The store refused or did not answer; the message says why, without keys and queries."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the object; parts are numbered from 1, and all but the last are of one size."""

    number: int
    offset: int
    content: bytes


class Store(Protocol):
    """One place for one object, which is sent in parts. Everything blocks, and raises StoreFailed or OSError."""

    name: str
    """What may be shown."""

    def size(self) -> int | None:
        """Bytes of the object that is there; None where there is none."""

    def begin(self) -> str:
        """Begin an upload; its ID."""

    def arrived(self, upload_id: str, part_bytes: int) -> Mapping[int, str] | None:
        """The tag of each part that is there, by its number; None where no such upload is in progress."""

    def put(self, upload_id: str, part: Part) -> str:
        """Send one part; its tag. May be called by several threads."""

    def complete(self, upload_id: str, tags: Mapping[int, str]) -> None:
        """Make the object of all its parts. Nothing that is there by then is overwritten, as far as the store can."""

    def abort(self, upload_id: str) -> None:
        """Remove the parts of an upload that will not be completed."""

    def read(self) -> Iterator[bytes]:
        """The object's bytes."""


def open_store(target: str) -> Store:
    """The store that a URL names: s3://BUCKET/KEY or file://PATH. Raises BadUsage."""
    scheme, separator, rest = target.partition("://")
    if scheme == "file" and rest:
        from service.cli.publish.file_store import FileStore

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
