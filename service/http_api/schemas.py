"""The HTTP wire: requests as they come, answers as they go. Nothing else."""

import base64
import binascii
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, SecretStr, model_validator

from service.blob import BlobRef
from service.checksum import is_checksum
from service.egress.url_policy import MAX_URL_LENGTH
from service.errors import BlobKind, Fault, InvalidRequest, ScoringError, all_codes
from service.scoring.competition import (
    MAX_MANIFESTS,
    Competition,
    ModelManifest,
    competitors,
    parse_decryption_key,
)
from service.scoring.results import CompetitionResult, Evaluation

_MAX_MEMBERS = 32

Code = Annotated[str, Field(examples=list(all_codes()))]

Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Url = Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH)]
Checksum = Annotated[str, Field(max_length=64)]
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Embedding = Annotated[list[FiniteFloat], Field(min_length=1, max_length=1 << 16, fail_fast=True)]


class _Wire(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class _Request(_Wire):
    @model_validator(mode="before")
    @classmethod
    def _refuse_a_flood(cls, body: object) -> object:
        """A body of a million unknown members would be a million errors, each put into words."""
        if isinstance(body, dict) and len(body) > _MAX_MEMBERS:
            raise ValueError("too many members")
        return body


class EvalRequest(_Request):
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
    """Blake2b-256 of the data, Base58; null: whatever comes is taken. Only with `data_url`."""
    data_size: Size | None = None
    """Length of the data in bytes; null: not known. Only with `data_url`."""
    weights_url: Url
    """Where the weights are published: one safetensors file, encrypted or not."""
    weights_checksum: Checksum | None = None
    """Blake2b-256 of the file as published, Base58; null: whatever comes is taken."""
    weights_size: Size | None = None
    """Length of the file as published, in bytes; null: not known."""
    decryption_key: SecretStr | None = None
    """AES-256-CTR key of the weights, 32 bytes in Base58; null: they are not encrypted."""
    seed: Seed = 0
    """Seed of the SIGReg noise, 0 to 2^64 - 1."""
    target_embedding: Embedding | None = None
    """What the distance is measured to: as many numbers as an embedding has; null: no distance."""

    def to_competition(self) -> Competition:
        """Raises InvalidRequest, or InvalidKey."""
        weights = _blob_ref("weights", self.weights_url, self.weights_checksum, self.weights_size)
        key = _text(self.decryption_key)
        return Competition(
            data=self._data(),
            models=(ModelManifest(weights, None if key is None else parse_decryption_key(key)),),
            seed=self.seed,
            target_embedding=_target(self.target_embedding),
        )

    def _data(self) -> bytes | BlobRef:
        if (self.data is None) == (self.data_url is None):
            raise InvalidRequest("give either data or data_url")
        if self.data_url is not None:
            return _blob_ref("data", self.data_url, self.data_checksum, self.data_size)
        if self.data_checksum is not None or self.data_size is not None:
            raise InvalidRequest("data_checksum and data_size go with data_url")
        try:
            return base64.b64decode(self.data or "", validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("data is not Base64") from None


class Manifest(_Request):
    """One competitor of a competition, as the network describes it. What makes no sense is its own error."""

    url: str
    """Where the weights are published: one safetensors file, encrypted or not."""
    checksum: str
    """Blake2b-256 of the file as published, Base58."""
    size: Annotated[int, Field(ge=0, lt=1 << 64)]
    """Length of the file as published, in bytes."""
    decryption_key: SecretStr | None = None
    """AES-256-CTR key of the weights, 32 bytes in Base58; null: they are not encrypted."""


class ScoreRequest(_Request):
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
    """The models, in the order in which `models` of the answer has them."""
    target_embedding: Embedding
    """What distances are measured to: as many numbers as an embedding has."""
    seed: Seed
    """Seed of the SIGReg noise, 0 to 2^64 - 1."""

    def to_competition(self) -> Competition:
        """Raises InvalidRequest, or InvalidKey."""
        return Competition(
            data=_blob_ref("data", self.data_url, self.data_checksum, self.data_size),
            models=competitors(
                (BlobRef(model.url, model.checksum, model.size), _text(model.decryption_key))
                for model in self.model_manifests
            ),
            seed=self.seed,
            target_embedding=_target(self.target_embedding),
        )


def _blob_ref(name: str, url: str, checksum: str | None, size: int | None) -> BlobRef:
    if checksum is not None and not is_checksum(checksum):
        raise InvalidRequest(f"the checksum of {name} is not a Blake2b-256 digest in Base58")
    return BlobRef(url, checksum, size)


def _text(key: SecretStr | None) -> str | None:
    return None if key is None else key.get_secret_value()


def _target(embedding: list[float] | None) -> tuple[float, ...] | None:
    return None if embedding is None else tuple(embedding)


class Provenance(_Wire):
    """What the numbers were made from and with."""

    weights_checksum: str
    """Blake2b-256 of the weights as published, Base58, computed from the bytes that came."""
    data_checksum: str
    """Blake2b-256 of the data, Base58, computed from the bytes that came."""
    seed: int
    """Seed of the SIGReg noise, as it was asked for."""
    architecture_version: str
    """Version of the network's architecture that the weights are of."""
    precision: str
    """float32 unless the service was started with another."""
    device: str
    """The devices that took part: `cpu`, `cuda:0,cuda:1`."""
    versions: dict[str, str]
    """Of the packages that make the numbers."""


class Timings(_Wire):
    """Where the time went, in seconds."""

    queue_seconds: float
    """Waiting for a device, once data and weights were here."""
    download_seconds: float
    """The longer of data and weights; 0 for what was in the cache."""
    load_seconds: float
    """Decrypting and bringing the weights to the device; 0 when they were there."""
    eval_seconds: float
    """Computing."""
    total_seconds: float
    """From admission to the result."""
    weights_cached: Literal["disk", "device", "no"]
    """Where the weights were found."""


class EvalResponse(_Wire):
    """What the model is worth: `loss = cross_entropy + 0.02 * sig_reg`."""

    loss: float
    """Nats; the lowest wins."""
    embedding: list[float]
    """The mean representation: `embedding_dim` numbers."""
    cross_entropy: float
    """Nats, over all tokens, padding counted, as the network does."""
    sig_reg: float
    """Before its coefficient 0.02."""
    distance: float | None
    """Cosine distance of the embedding to the target, 0 to 2; null without a target."""
    num_sequences: int
    """Of 1,024 tokens, the last one padded."""
    num_batches: int
    """Of 16 sequences, the last one smaller."""
    attends_to_future: bool
    """Such weights see the bytes they predict."""
    provenance: Provenance
    """Which bytes, seed, device and packages the numbers come from."""
    timings: Timings
    """Where the time went."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """The evaluation, ready for the wire."""
        return cls(
            loss=evaluation.loss,
            embedding=evaluation.embedding.tolist(),
            cross_entropy=evaluation.cross_entropy,
            sig_reg=evaluation.sig_reg,
            distance=evaluation.distance,
            num_sequences=evaluation.num_sequences,
            num_batches=evaluation.num_batches,
            attends_to_future=evaluation.attends_to_future,
            provenance=_provenance(evaluation),
            timings=_timings(evaluation),
        )


def _provenance(evaluation: Evaluation) -> Provenance:
    return Provenance.model_validate(evaluation.provenance, from_attributes=True)


def _timings(evaluation: Evaluation) -> Timings:
    return Timings.model_validate(evaluation.timings, from_attributes=True)


class Problem(_Wire):
    """An error, as RFC 9457 has it, with this service's own members."""

    type: str
    """A URN with the code in it."""
    title: str
    """The same for every error of this code."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened this time; never a key or a URL."""
    instance: str
    """The path that was asked for."""
    code: Code
    """Names the failure."""
    fault: Fault
    """Who can mend it."""
    blob: BlobKind | None
    """Whether the error is about the data or about a model's weights."""
    model_index: int | None
    """Which model of the request, counted from 0; null where it is not about one of several."""
    retryable: bool
    """False for a verdict, which every validator reaches; true for trouble that may pass."""
    request_id: str
    """Also in the header `X-Request-Id` and in the service's log."""


class ModelError(_Wire):
    """Why one model of a competition has no result."""

    code: Code
    """Names the failure."""
    title: str
    """The same for every error of this code."""
    detail: str
    """What happened this time; never a key or a URL."""
    fault: Fault
    """Who can mend it."""
    blob: BlobKind | None
    """Whether the error is about the data or about the model's weights."""
    model_index: int | None
    """Which model of the request, counted from 0."""
    retryable: bool
    """False for a verdict, which every validator reaches; true for trouble that may pass."""

    @classmethod
    def of(cls, error: ScoringError) -> Self:
        """The error, ready for the wire."""
        return cls(
            code=error.full_code,
            title=error.title,
            detail=error.detail,
            fault=error.fault,
            blob=error.blob,
            model_index=error.model_index,
            retryable=error.retryable,
        )


class ModelResult(_Wire):
    """One model of a competition: numbers or an error."""

    loss: float | None = None
    """Nats; null where the model has no result."""
    cross_entropy: float | None = None
    """Nats, over all tokens; null where the model has no result."""
    sig_reg: float | None = None
    """Before its coefficient 0.02; null where the model has no result."""
    distance: float | None = None
    """Cosine distance of the embedding to the target, 0 to 2; null where it has none."""
    attends_to_future: bool | None = None
    """Such weights see the bytes they predict; null where the model has no result."""
    error: ModelError | None = None
    """Why the model is out, or has no distance; null where nothing went wrong."""
    provenance: Provenance | None = None
    """What the numbers were made from and with; null where the model has no result."""
    timings: Timings | None = None
    """Where the time went; null where the model has no result."""


class ScoreResponse(_Wire):
    """The verdict; the first four members are the network's own ScoreResponse."""

    winner: int
    """Index of the model with the lowest loss, the first on a tie."""
    loss_score: list[float]
    """One number: the winner's loss."""
    embedding: list[float]
    """The winner's mean representation: `embedding_dim` numbers."""
    distance: list[float]
    """One number: the winner's distance to the target."""
    margin: float | None
    """Loss of the second best less the winner's; null with one valid model."""
    near_tie: bool
    """The margin is within what the network allows between validators: 1 % or 0.01."""
    models: list[ModelResult]
    """One for each manifest, in order."""

    @classmethod
    def of(cls, verdict: CompetitionResult) -> Self:
        """The verdict, ready for the wire."""
        winning = verdict.winning
        return cls(
            winner=verdict.winner,
            loss_score=[winning.loss],
            embedding=winning.embedding.tolist(),
            distance=[] if winning.distance is None else [winning.distance],
            margin=verdict.margin,
            near_tie=verdict.near_tie,
            models=[_model_result(o.evaluation, o.error) for o in verdict.outcomes],
        )


def _model_result(evaluation: Evaluation | None, error: ScoringError | None) -> ModelResult:
    told = None if error is None else ModelError.of(error)
    if evaluation is None:
        return ModelResult(error=told)
    return ModelResult(
        loss=evaluation.loss,
        cross_entropy=evaluation.cross_entropy,
        sig_reg=evaluation.sig_reg,
        distance=evaluation.distance,
        attends_to_future=evaluation.attends_to_future,
        error=told,
        provenance=_provenance(evaluation),
        timings=_timings(evaluation),
    )


class PhaseProgress(_Wire):
    """How far the data, or one model, has come: bytes of its download, then batches of its evaluation."""

    phase: str
    """queued, downloading, loading, evaluating, done or failed."""
    bytes_done: int | None = None
    """Bytes downloaded so far; null where nothing is downloaded."""
    bytes_total: int | None = None
    """Bytes of the whole file; null where the server does not tell."""
    bytes_per_second: float | None = None
    """Rate of the download of late; null where nothing is downloaded."""
    batches_done: int | None = None
    """Batches evaluated so far; null before the evaluation."""
    num_batches: int | None = None
    """Batches of the whole evaluation; null before it."""


class JobProgress(_Wire):
    """How far a job has come."""

    data: PhaseProgress | None
    """Null for data that came with the request, or is here."""
    models: list[PhaseProgress]
    """One for each model, in order."""
    estimated_seconds_left: float | None
    """Null while nothing is known of it."""


class JobStatus(_Wire):
    """A job and, once it has succeeded or failed, what came of it."""

    id: str
    """Names the job in `/jobs/{id}`."""
    kind: Literal["eval", "score"]
    """What was asked for."""
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    """The last three are final."""
    created_at: str
    """UTC, ISO 8601."""
    finished_at: str | None
    """UTC, ISO 8601; null until the state is final."""
    progress: JobProgress
    """How far it has come."""
    result: EvalResponse | ScoreResponse | None
    """What `kind` answers; null until `state` is succeeded."""
    error: Problem | None
    """Null unless `state` is failed."""


class Health(_Wire):
    """The process lives."""

    status: Literal["ok"] = "ok"
    """Always ok: a process that does not live answers nothing."""


class Device(_Wire):
    """One worker."""

    device: str
    """`cpu`, `cuda:0`."""
    device_name: str
    """As its driver calls it."""
    ready: bool
    """It has recently passed its self-test."""
    busy: bool
    """It has a job."""
    restarts: int
    """How often its process had to be started again."""
    trouble: str
    """Why it is not to be relied on now, such as that it is out of service; empty when nothing is wrong."""


class Readiness(_Wire):
    """Whether requests are taken, and by which workers."""

    status: Literal["ready", "draining", "no-worker", "no-storage"]
    """draining: the service is stopping; no-worker: none passed its self-test; no-storage: the disk does not work."""
    devices: list[Device]
    """One for each worker."""


class NotReady(Problem):
    """Why no request is taken now."""

    devices: list[Device]
    """One for each worker."""


class RequestLimits(_Wire):
    """What a caller may ask for."""

    max_body_bytes: int
    """Length of a request's body."""
    max_data_bytes: int
    """Length of the data of one evaluation."""
    max_model_bytes: int
    """Length of one weights file."""
    max_models: int
    """Models of one competition."""
    queue_size: int
    """Requests that may wait or run at once; one more is told queue-full."""
    request_timeout_seconds: float
    """How long one request may take."""


class Info(_Wire):
    """What is served, within which limits."""

    version: str
    """Of this service."""
    architecture_version: str
    """Version of the network's architecture."""
    architecture: dict[str, Any]
    """The shape of the models served."""
    precision: str
    """float32 unless the service was started with another."""
    limits: RequestLimits
    """The most that one request may ask for."""
    devices: list[Device]
    """One for each worker."""
    versions: dict[str, str]
    """Of the packages that make the numbers."""
