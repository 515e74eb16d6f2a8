"""An object in S3 or in what speaks its protocol (R2, Google's storage, MinIO), sent as a multipart upload.

Where it is and who may write is told as boto3 is told it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL,
profiles and so on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from service.cli.publish.store import Part, StoreFailed

_CONFIG = Config(
    connect_timeout=10,
    read_timeout=60,
    retries={"mode": "standard", "total_max_attempts": 5},
    request_checksum_calculation="when_required",  # other stores do not know Amazon's own checksums
    response_checksum_validation="when_required",
)
_CHUNK_BYTES = 1 << 20
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "these credentials may not do that",
    "403": "these credentials may not do that",
    "InvalidAccessKeyId": "the store does not know this access key",
    "SignatureDoesNotMatch": "the secret access key is not the right one",
    "PreconditionFailed": "somebody else has put something there in the meantime",
}


class S3Store:
    """One object of a bucket."""

    def __init__(self, bucket: str, key: str) -> None:
        """Raises StoreFailed where the configuration is broken."""
        self.name = f"s3://{bucket}/{key}"
        self._object = {"Bucket": bucket, "Key": key}
        with _failures("connecting"):
            self._client: Any = boto3.client("s3", config=_CONFIG)

    def size(self) -> int | None:
        """Also refuses what would be refused later: a bucket or credentials that do not exist."""
        with _failures("looking whether something is there"):
            try:
                return int(self._client.head_object(**self._object)["ContentLength"])
            except ClientError as error:
                if _code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                return None

    def begin(self) -> str:
        """Begin a multipart upload."""
        with _failures("beginning the upload"):
            content_type = "application/octet-stream"
            begun = self._client.create_multipart_upload(**self._object, ContentType=content_type)
            return str(begun["UploadId"])

    def arrived(self, upload_id: str, part_bytes: int) -> Mapping[int, str] | None:
        """What the store lists."""
        with _failures("asking what has arrived"):
            try:
                pages = self._client.get_paginator("list_parts").paginate(**self._object, UploadId=upload_id)
                return {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", ())}
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise
                return None

    def put(self, upload_id: str, part: Part) -> str:
        """boto3's clients may be used by several threads."""
        with _failures(f"sending part {part.number}"):
            sent = self._client.upload_part(
                **self._object, UploadId=upload_id, PartNumber=part.number, Body=part.content
            )
            return str(sent["ETag"])

    def complete(self, upload_id: str, tags: Mapping[int, str]) -> None:
        """Not every store keeps the promise that nothing is overwritten."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(tags.items())]
        with _failures("completing the upload"):
            self._client.complete_multipart_upload(
                **self._object, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )

    def abort(self, upload_id: str) -> None:
        """An upload that the store has forgotten is no failure."""
        with _failures("removing an earlier upload"):
            try:
                self._client.abort_multipart_upload(**self._object, UploadId=upload_id)
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise

    def read(self) -> Iterator[bytes]:
        """The object, as whoever may read it gets it."""
        with _failures("reading what arrived"):
            yield from self._client.get_object(**self._object)["Body"].iter_chunks(_CHUNK_BYTES)


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """What boto3 raises as StoreFailed. Not in its words: they may quote a URL with its query."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        raise StoreFailed(f"{doing} failed: {_REMEDIES.get(code, f'the store says {code[:80]}')}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise StoreFailed(f"{doing} failed: there are no credentials: set {names}, or a profile") from error
    except BotoCoreError as error:
        raise StoreFailed(f"{doing} failed: no answer ({type(error).__name__})") from error
    except ValueError as error:  # an endpoint that is no URL
        raise StoreFailed(f"{doing} failed: AWS_ENDPOINT_URL or the bucket's name is not valid") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "nothing"))
