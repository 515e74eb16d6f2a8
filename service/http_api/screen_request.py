"""The request to screen, as JSON, and the screen and pieces it describes."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from pydantic import ConfigDict, Field, FiniteFloat, SecretStr

from service.blob import BlobRef
from service.errors import InvalidRequest, ScoringError
from service.http_api.requests import Checksum, Embedding, RequestSchema, Seed, Size, Url, data_of, text_of
from service.scoring.competition import MAX_MANIFESTS, competitors
from service.scoring.screen import Id, Piece, Screen, ScreenModel, screen_target
from service.scoring.screen import ScreenTarget as Target

MAX_PIECES = 1_000_000
MAX_TARGETS = 100_000
"""Early bounds on what is parsed; the limits of a service are lower."""

_Id = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | Annotated[str, Field(max_length=256)]


class ScreenPiece(RequestSchema):
    """One piece of data, inline or by URL. What is not valid is an error of this piece alone."""

    id: _Id | None = None
    """What the piece is called in its line; null: its position, counted from 0."""
    data: Annotated[str | None, Field(repr=False)] = None
    """The bytes, in Base64. Give this or `data_url`."""
    data_url: Url | None = None
    """Where the bytes are published. Give this or `data`."""
    data_checksum: Checksum | None = None
    """Blake2b-256 of the data, Base58; null: not verified. Only with `data_url`."""
    data_size: Size | None = None
    """Length of the data in bytes; null: not known. Only with `data_url`."""

    def content(self) -> bytes | BlobRef:
        """Raises InvalidRequest."""
        return data_of(self.data, self.data_url, self.data_checksum, self.data_size)


class ScreenedModel(RequestSchema):
    """One model, as the network describes it. What is not valid is an error of this model alone."""

    id: _Id | None = None
    """What the model is called in targets and lines; null: its position, counted from 0."""
    url: str
    """Where the weights are published: one safetensors file, encrypted or not."""
    checksum: str | None = None
    """Blake2b-256 of the file as published, Base58; null: not verified."""
    size: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    """Length of the file as published, in bytes; null: not known."""
    decryption_key: SecretStr | None = None
    """AES-256-CTR key of the weights, 32 bytes in Base58; null: not encrypted."""


class ScreenTarget(RequestSchema):
    """A target of the network, and the models that compete for it."""

    id: _Id | None = None
    """What the target is called in lines; null: its position, counted from 0."""
    embedding: Embedding
    """The embedding to measure distances to: `embedding_dim` numbers."""
    distance_threshold: FiniteFloat
    """A piece hits the target when its winner's distance is not larger."""
    model_ids: Annotated[list[_Id], Field(max_length=MAX_MANIFESTS)] | None = None
    """Its models, in its own order; null: all."""


class ScreenRequest(RequestSchema):
    """Many pieces of data, to be evaluated with some models and measured against some targets."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pieces": [{"id": "a", "data": "dGhlIHF1aWNrIGJyb3duIGZveA=="}],
                    "models": [
                        {
                            "url": "https://publisher.example/weights.enc",
                            "checksum": "CpUPVjkorf5r6pkWcQ85jaVYUiM3SCbSvccWZ3XK3upt",
                            "size": 56304,
                            "decryption_key": "1thX6LZfHDZZKUs92febYZhYRcXddmzfzF2NvTkPNE",
                        }
                    ],
                    "targets": [{"embedding": [0.5], "distance_threshold": 0.25}],
                    "seed": 1,
                }
            ]
        }
    )

    pieces: Annotated[list[ScreenPiece], Field(min_length=1, max_length=MAX_PIECES, fail_fast=True)]
    """The pieces of data; each has a line of its own."""
    models: Annotated[list[ScreenedModel], Field(min_length=1, max_length=MAX_MANIFESTS, fail_fast=True)]
    """The models; `models` of every line has the same order."""
    targets: Annotated[list[ScreenTarget], Field(max_length=MAX_TARGETS, fail_fast=True)] = Field(
        default_factory=list
    )
    """The targets; `targets` of every line has the same order."""
    seed: Seed = 0
    """Seed of the SIGReg noise, 0 to 2^64 - 1."""

    def to_screen(self, embedding_dim: int, max_targets: int) -> Screen:
        """Raises InvalidRequest, or InvalidKey where no model makes sense."""
        if len(self.targets) > max_targets:
            raise InvalidRequest(f"a screen has at most {max_targets} targets")
        ids = _ids("models", [model.id for model in self.models])
        weights = competitors(
            (BlobRef(model.url, model.checksum, model.size), text_of(model.decryption_key))
            for model in self.models
        )
        models = tuple(ScreenModel(name, each) for name, each in zip(ids, weights, strict=True))
        return Screen(models, self._targets(ids, embedding_dim), self.seed)

    def _targets(self, model_ids: Sequence[Id], embedding_dim: int) -> tuple[Target, ...]:
        places = {name: index for index, name in enumerate(model_ids)}
        ids = _ids("targets", [target.id for target in self.targets])
        found = []
        for name, target in zip(ids, self.targets, strict=True):
            wanted = model_ids if target.model_ids is None else target.model_ids
            if not places.keys() >= set(wanted):
                raise InvalidRequest(f"target {name!r} names a model that is not among the models")
            models = tuple(places[each] for each in wanted)
            found.append(
                screen_target(name, target.embedding, target.distance_threshold, models, embedding_dim)
            )
        return tuple(found)

    def to_pieces(self, max_pieces: int) -> AsyncIterator[Piece]:
        """One after the other, each decoded when it is asked for. Raises InvalidRequest, at once."""
        if len(self.pieces) > max_pieces:
            raise InvalidRequest(f"a screen has at most {max_pieces} pieces")
        return _decoded(_ids("pieces", [piece.id for piece in self.pieces]), self.pieces)


async def _decoded(ids: Sequence[Id], pieces: Sequence[ScreenPiece]) -> AsyncIterator[Piece]:
    for name, piece in zip(ids, pieces, strict=True):
        try:
            content: bytes | BlobRef | ScoringError = piece.content()
        except ScoringError as error:
            content = error
        yield Piece(name, content)


def _ids(what: str, given: Sequence[Id | None]) -> list[Id]:
    """Each one's own, or its position. Raises InvalidRequest where two are the same."""
    ids = [position if each is None else each for position, each in enumerate(given)]
    if len(set(ids)) < len(ids):
        raise InvalidRequest(f"two of the {what} have the same id")
    return ids
