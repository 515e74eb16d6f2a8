"""What scoring requests and jobs are answered with, as JSON."""

from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator

from service.http_api.problems import ModelError, Problem, model_error_of
from service.http_api.schema import Schema
from service.jobs.job import JobKind, JobState
from service.scoring.results import CompetitionResult, Evaluation, ModelOutcome
from service.scoring.results import Provenance as EvaluationProvenance
from workers.types import EvalResult


def _as_list(embedding: Any) -> Any:
    return embedding.tolist() if isinstance(embedding, np.ndarray) else embedding


Embedding = Annotated[list[float], BeforeValidator(_as_list)]


class Provenance(Schema):
    """Inputs, device and versions of one evaluation."""

    weights_checksum: str
    """Blake2b-256 of the weights as published, Base58, computed from the bytes received."""
    data_checksum: str
    """Blake2b-256 of the data, Base58, computed from the bytes received."""
    seed: int
    """Seed of the SIGReg noise, from the request."""
    architecture_version: str
    """Version of the network's architecture that the weights are of."""
    numerics_version: str
    """Version of the service's own computation: two results of one version and device are equal to the last bit."""
    computed_at: datetime
    """UTC, ISO 8601; before the request where `timings.result_cached` is true."""
    architecture: str
    """Name of the architecture: `network`, `small`, or another for each other one; `GET /info` has all of it."""
    precision: str
    """float32 unless the service was started with another."""
    device: str
    """The devices that took part: `cpu`, `cuda:0,cuda:1`."""
    was_cut_smaller: bool
    """Whether lack of memory had it computed in smaller pieces: its last bits may differ, and it is not kept."""
    versions: dict[str, str]
    """Of the packages that make the numbers."""


class Timings(Schema):
    """Where the time went, in seconds."""

    queue_seconds: float
    """Waiting for a device, after data and weights were fetched."""
    download_seconds: float
    """The longer of data and weights; 0 for what was in the cache."""
    load_seconds: float
    """Decrypting the weights and loading them onto the device; 0 when they were resident."""
    eval_seconds: float
    """Computing."""
    total_seconds: float
    """From admission to the result."""
    weights_cached: Literal["disk", "device", "no"]
    """Where the weights were found."""
    result_cached: bool
    """True for a result that was computed for an earlier request and kept."""


class EvalResponse(Schema):
    """The evaluation of one model: `loss = cross_entropy + 0.02 * sig_reg`."""

    loss: float
    """Nats; the lowest wins."""
    embedding: Embedding
    """The mean representation: `embedding_dim` numbers."""
    cross_entropy: float
    """Nats, over all tokens, padding included, as on the network."""
    sig_reg: float
    """Before its coefficient 0.02."""
    distance: float | None
    """Cosine distance of the embedding to the target, 0 to 2; null without a target."""
    num_sequences: int
    """Of `max_seq_len` tokens, 1,024 on the network; the last one padded."""
    num_batches: int
    """Of `batch_size` sequences, 16 on the network; the last one smaller."""
    attends_to_future: bool
    """True for weights that see the bytes they predict."""
    provenance: Provenance
    """The inputs, the device and the packages that the numbers come from."""
    timings: Timings
    """Where the time went."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        """The evaluation as its schema."""
        return cls.model_validate(_members_of(evaluation), from_attributes=True, extra="ignore")


class ModelResult(Schema):
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
    """True for weights that see the bytes they predict; null where the model has no result."""
    error: ModelError | None = None
    """Why the model has no result, or no distance; null where nothing went wrong."""
    provenance: Provenance | None = None
    """Where the numbers come from; null where the model has no result."""
    timings: Timings | None = None
    """Where the time went; null where the model has no result."""

    @classmethod
    def of(cls, outcome: ModelOutcome) -> Self:
        """The outcome as its schema."""
        error = None if outcome.error is None else model_error_of(outcome.error)
        if outcome.evaluation is None:
            return cls(error=error)
        members = _members_of(outcome.evaluation)
        result = cls.model_validate(members, from_attributes=True, extra="ignore")
        return result.model_copy(update={"error": error})


class ScoreResponse(Schema):
    """The result of a competition; the first four members are the network's own ScoreResponse."""

    winner: int
    """Index of the model with the lowest loss, the first on a tie."""
    loss_score: list[float]
    """One number: the winner's loss."""
    embedding: list[float]
    """The winner's mean representation: `embedding_dim` numbers."""
    distance: list[float]
    """One number: the winner's distance to the target."""
    margin: float | None
    """Loss of the second best minus the winner's; null with one valid model."""
    near_tie: bool
    """The margin is within what the network allows between validators: 1 % or 0.01."""
    models: list[ModelResult]
    """One for each manifest, in order."""

    @classmethod
    def of(cls, result: CompetitionResult) -> Self:
        """The result of a competition as its schema."""
        winning = result.winning
        return cls(
            winner=result.winner,
            loss_score=[winning.result.loss],
            embedding=winning.result.embedding.tolist(),
            distance=[] if winning.distance is None else [winning.distance],
            margin=result.margin,
            near_tie=result.near_tie,
            models=[ModelResult.of(outcome) for outcome in result.outcomes],
        )


def _members_of(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation's values by the names of the schemas, among others."""
    result = _values_of(evaluation.result)
    return {
        **result,
        "distance": evaluation.distance,
        "provenance": {**result, **_values_of(evaluation.provenance)},
        "timings": evaluation.timings,
    }


def _values_of(value: EvalResult | EvaluationProvenance) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


class PhaseProgress(Schema):
    """Progress of the data or of one model: bytes of its download, then batches of its evaluation."""

    phase: str
    """queued, downloading, loading, evaluating, done or failed."""
    bytes_done: int | None = None
    """Bytes downloaded so far; null where nothing is downloaded."""
    bytes_total: int | None = None
    """Bytes of the whole file; null where the server does not say."""
    bytes_per_second: float | None = None
    """Recent rate of the download; null where nothing is downloaded."""
    batches_done: int | None = None
    """Batches evaluated so far; null before the evaluation."""
    num_batches: int | None = None
    """Batches of the whole evaluation; null before it."""
    fraction: float | None = None
    """Of the evaluation that is done, 0 to 1; where a batch takes long, also within it. Null before the evaluation."""


class JobProgress(Schema):
    """Progress of a job."""

    data: PhaseProgress | None
    """Null for data that was in the request or in the cache."""
    models: list[PhaseProgress]
    """One for each model, in order."""
    estimated_seconds_left: float | None
    """Null until a batch of any model is done, or a part of one that takes long."""


class JobStatus(Schema):
    """A job and, once it has succeeded or failed, its result or error."""

    id: str
    """Identifies the job in `/jobs/{id}`."""
    kind: JobKind
    """The request: POST /eval or POST /score."""
    state: JobState
    """The last three are final."""
    created_at: str
    """UTC, ISO 8601."""
    finished_at: str | None
    """UTC, ISO 8601; null until the state is final."""
    progress: JobProgress
    """Of its downloads and evaluations."""
    result: EvalResponse | ScoreResponse | None
    """The response of `kind`; null until `state` is succeeded."""
    error: Problem | None
    """Null unless `state` is failed."""


class JobPage(Schema):
    """Some of the jobs, the newest first."""

    jobs: list[JobStatus]
    """As `/jobs/{id}` has them."""
    next: str | None
    """What to give as `after` for the jobs that are older; null where there are none."""
