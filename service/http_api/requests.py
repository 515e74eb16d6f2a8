"""The requests to score, as JSON, and the competitions they describe."""

import base64
import binascii
from typing import Annotated

from pydantic import ConfigDict, Field, FiniteFloat, SecretStr, model_validator

from service.blob import BlobRef
from service.checksum import is_checksum
from service.egress.url_policy import MAX_URL_LENGTH
from service.errors import InvalidRequest
from service.http_api.schema import Schema
from service.scoring.competition import (
    MAX_MANIFESTS,
    Competition,
    ModelManifest,
    competitors,
    parse_decryption_key,
)

_MAX_MEMBERS = 32

Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Url = Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH)]
Checksum = Annotated[str, Field(max_length=64)]
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Embedding = Annotated[list[FiniteFloat], Field(min_length=1, max_length=1 << 16, fail_fast=True)]


class RequestSchema(Schema):
    """A JSON object of a request."""

    @model_validator(mode="before")
    @classmethod
    def _limit_members(cls, body: object) -> object:
        """Refuse a body of a million unknown members before each becomes an error message."""
        if isinstance(body, dict) and len(body) > _MAX_MEMBERS:
            raise ValueError("too many members")
        return body


class EvalRequest(RequestSchema):
    """One model on one data set. The data comes inline or by URL."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "data": "dGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIGEgbGF6eSBkb2c=",
                    "weights_url": "https://publisher.example/weights.enc",
                    "weights_checksum": "CpUPVjkorf5r6pkWcQ85jaVYUiM3SCbSvccWZ3XK3upt",
                    "decryption_key": "1thX6LZfHDZZKUs92febYZhYRcXddmzfzF2NvTkPNE",
                    "seed": 1,
                }
            ]
        }
    )

    data: Annotated[str | None, Field(repr=False)] = None
    """The bytes to evaluate on, in Base64. Give this or `data_url`."""
    data_url: Url | None = None
    """Where the bytes to evaluate on are published. Give this or `data`."""
    data_checksum: Checksum | None = None
    """Blake2b-256 of the data, Base58; null: not verified. Only with `data_url`."""
    data_size: Size | None = None
    """Length of the data in bytes; null: not known. Only with `data_url`."""
    weights_url: Url
    """Where the weights are published: one safetensors file, encrypted or not."""
    weights_checksum: Checksum | None = None
    """Blake2b-256 of the file as published, Base58; null: not verified."""
    weights_size: Size | None = None
    """Length of the file as published, in bytes; null: not known."""
    decryption_key: SecretStr | None = None
    """AES-256-CTR key of the weights, 32 bytes in Base58; null: not encrypted."""
    seed: Seed = 0
    """Seed of the SIGReg noise, 0 to 2^64 - 1."""
    target_embedding: Embedding | None = None
    """The embedding to measure the distance to: `embedding_dim` numbers; null: no distance."""

    def to_competition(self) -> Competition:
        """Raises InvalidRequest, or InvalidKey."""
        weights = blob_ref("weights", self.weights_url, self.weights_checksum, self.weights_size)
        key = text_of(self.decryption_key)
        return Competition(
            data=self._data(),
            models=(ModelManifest(weights, None if key is None else parse_decryption_key(key)),),
            seed=self.seed,
            target_embedding=_target(self.target_embedding),
        )

    def _data(self) -> bytes | BlobRef:
        return data_of(self.data, self.data_url, self.data_checksum, self.data_size)


class Manifest(RequestSchema):
    """One model of a competition, as the network describes it. What is not valid is an error of this model alone."""

    url: str
    """Where the weights are published: one safetensors file, encrypted or not."""
    checksum: str
    """Blake2b-256 of the file as published, Base58."""
    size: Annotated[int, Field(ge=0, lt=1 << 64)]
    """Length of the file as published, in bytes."""
    decryption_key: SecretStr | None = None
    """AES-256-CTR key of the weights, 32 bytes in Base58; null: not encrypted."""


class ScoreRequest(RequestSchema):
    """A competition: the network's own ScoreRequest."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "data_url": "https://publisher.example/data.bin",
                    "data_checksum": "73CawZ54kNHJSMKTZK5gs3v9DZvuSCJbJ6oqo6VAk9d",
                    "data_size": 41,
                    "model_manifests": [
                        {
                            "url": "https://publisher.example/weights.enc",
                            "checksum": "CpUPVjkorf5r6pkWcQ85jaVYUiM3SCbSvccWZ3XK3upt",
                            "size": 56304,
                            "decryption_key": "1thX6LZfHDZZKUs92febYZhYRcXddmzfzF2NvTkPNE",
                        }
                    ],
                    "target_embedding": [0.5],
                    "seed": 1,
                }
            ]
        }
    )

    data_url: Url
    """Where the bytes to evaluate on are published."""
    data_checksum: Checksum
    """Blake2b-256 of the data, Base58."""
    data_size: Size
    """Length of the data in bytes."""
    model_manifests: Annotated[list[Manifest], Field(min_length=1, max_length=MAX_MANIFESTS, fail_fast=True)]
    """The models; `models` of the response has the same order."""
    target_embedding: Embedding
    """The embedding to measure distances to: `embedding_dim` numbers."""
    seed: Seed
    """Seed of the SIGReg noise, 0 to 2^64 - 1."""

    def to_competition(self) -> Competition:
        """Raises InvalidRequest, or InvalidKey."""
        return Competition(
            data=blob_ref("data", self.data_url, self.data_checksum, self.data_size),
            models=competitors(
                (BlobRef(model.url, model.checksum, model.size), text_of(model.decryption_key))
                for model in self.model_manifests
            ),
            seed=self.seed,
            target_embedding=_target(self.target_embedding),
        )


def data_of(inline: str | None, url: str | None, checksum: str | None, size: int | None) -> bytes | BlobRef:
    """The data of a request, which has it in Base64 or says where it is published. Raises InvalidRequest."""
    if (inline is None) == (url is None):
        raise InvalidRequest("give either data or data_url")
    if url is not None:
        return blob_ref("data", url, checksum, size)
    if checksum is not None or size is not None:
        raise InvalidRequest("data_checksum and data_size go with data_url")
    try:
        return base64.b64decode(inline or "", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("data is not Base64") from None


def blob_ref(name: str, url: str, checksum: str | None, size: int | None) -> BlobRef:
    """Where something is published. Raises InvalidRequest for a checksum that is none."""
    if checksum is not None and not is_checksum(checksum):
        raise InvalidRequest(f"the checksum of {name} is not a Blake2b-256 digest in Base58")
    return BlobRef(url, checksum, size)


def text_of(key: SecretStr | None) -> str | None:
    """What a key says, for parsing it."""
    return None if key is None else key.get_secret_value()


def _target(embedding: list[float] | None) -> tuple[float, ...] | None:
    return None if embedding is None else tuple(embedding)
