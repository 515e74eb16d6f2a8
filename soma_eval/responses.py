"""What the service answers, as frozen models with the names of its API document (`/docs` describes every field).

Embeddings are lists of float: they compare, go into JSON and into soma-sdk as they are, and `numpy.asarray` takes them.
Fields that a newer service adds are ignored; a field that is missing or of another type, and a number that is not
finite, are refused. `model_dump_json()` turns an answer into JSON again.
"""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from .errors import ApiError, JobCancelled, UnexpectedResponse, class_of

_MAX_FLOAT32 = 3.4028234663852886e38

Embedding = Annotated[list[Annotated[float, Field(ge=-_MAX_FLOAT32, le=_MAX_FLOAT32)]], Field(min_length=1)]
"""Numbers of float32."""


class Response(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


class Problem(Response):
    """An error as the service describes it."""

    code: str
    detail: str = ""
    title: str = ""
    fault: str = "service"
    """client, data_submitter, model_owner or service."""
    blob: str | None = None
    """data or model."""
    model_index: int | None = None
    retryable: bool = False
    status: int | None = None
    """The HTTP status; None for the error of one model."""
    request_id: str | None = None
    instance: str | None = None
    type: str | None = None

    def to_exception(self, retry_after_seconds: float | None = None) -> ApiError:
        """The same as an exception of its own class."""
        return class_of(self.code, self.fault, self.retryable)(
            self.detail or self.title,
            code=self.code,
            fault=self.fault,
            blob=self.blob,
            model_index=self.model_index,
            retryable=self.retryable,
            status=self.status,
            request_id=self.request_id,
            retry_after_seconds=retry_after_seconds,
        )


class Provenance(Response):
    """What the numbers were made from and with."""

    weights_checksum: str
    data_checksum: str
    seed: int
    architecture_version: str
    numerics_version: str
    """Two results of one version and device are equal to the last bit."""
    computed_at: datetime
    """UTC; before the request where the result was kept."""
    precision: str
    device: str
    versions: dict[str, str]
    architecture: str = ""
    """network, small, or another name for each other one; empty from older services."""
    was_cut_smaller: bool = False
    """Computed in smaller pieces for lack of memory: the last bits may differ from another try's."""


class Timings(Response):
    """Where the time went, in seconds."""

    queue_seconds: float
    download_seconds: float
    load_seconds: float
    eval_seconds: float
    total_seconds: float
    weights_cached: str
    """disk, device or no."""
    result_cached: bool
    """Whether the result was kept from an earlier request."""


class EvalResponse(Response):
    """What one model is worth: `loss = cross_entropy + 0.02 * sig_reg`, in nats."""

    loss: float
    embedding: Embedding
    """The mean representation: `embedding_dim` numbers."""
    cross_entropy: float
    sig_reg: float
    distance: float | None
    """Cosine distance to the target, 0 to 2; None without a target."""
    num_sequences: int
    num_batches: int
    attends_to_future: bool
    """Such weights see the bytes they predict."""
    provenance: Provenance
    timings: Timings


class ModelResult(Response):
    """One model of a competition: numbers, or an error."""

    loss: float | None
    cross_entropy: float | None
    sig_reg: float | None
    distance: float | None
    attends_to_future: bool | None
    error: Problem | None
    """`error.to_exception()` is the exception of its code."""
    provenance: Provenance | None
    timings: Timings | None


class ScoreResponse(Response):
    """A competition; the lowest loss wins."""

    winner: Annotated[int, Field(ge=0)]
    """Index of the winning model."""
    loss_score: list[float]
    """One number: the winner's loss."""
    embedding: Embedding
    """The winner's."""
    distance: list[float]
    """One number: the winner's distance to the target."""
    margin: float | None
    """Loss of the second best less the winner's; None with one valid model."""
    near_tie: bool
    """The margin is within what the network allows between validators."""
    models: list[ModelResult]
    """One for each manifest, in order."""


class ScreenedModelResult(Response):
    """One model on one piece: numbers, or an error."""

    id: int | str
    loss: float | None
    cross_entropy: float | None
    sig_reg: float | None
    embedding: Embedding | None
    """The mean representation: `embedding_dim` numbers."""
    attends_to_future: bool | None
    result_cached: bool
    """Whether the result was kept from an earlier request."""
    error: Problem | None
    """`error.to_exception()` is the exception of its code."""


class ScreenedTarget(Response):
    """One piece and one target."""

    id: int | str
    winner: int | str | None
    """Id of the target's model with the lowest loss; None where none has a result."""
    distance: float | None
    """Of the winner's embedding to the target, 0 to 2; None where it has none."""
    hit: bool
    """The distance is within the target's threshold."""


class ScreenLine(Response):
    """What there is to say of one piece."""

    piece: int | str
    """Its id."""
    models: list[ScreenedModelResult]
    """One for each model, in order; empty where the piece has an error."""
    targets: list[ScreenedTarget]
    """One for each target, in order; empty where the piece has an error."""
    error: Problem | None
    """Why the piece was not evaluated."""


class ScreenCounts(Response):
    """The counts of a whole screen."""

    pieces: int
    failed: int
    """Pieces with an error of their own."""
    hits: int
    """Pairs of a piece and a target."""
    pieces_with_hits: int
    seconds: float


class ScreenLastLine(Response):
    """The last line of a screen."""

    summary: ScreenCounts
    error: Problem | None
    """Why it ended before its last piece."""


class PhaseProgress(Response):
    """Progress of the data, or of one model."""

    phase: str
    """queued, downloading, loading, evaluating, done or failed."""
    bytes_done: int | None
    bytes_total: int | None
    bytes_per_second: float | None
    batches_done: int | None
    num_batches: int | None
    fraction: float | None = None
    """Of the evaluation that is done, 0 to 1, also within a batch that takes long; None before, and from older
    services."""


class JobProgress(Response):
    """Progress of a job."""

    data: PhaseProgress | None
    models: list[PhaseProgress]
    estimated_seconds_left: float | None


R = TypeVar("R", bound=Response)


class Job(Response, Generic[R]):
    """A request that goes on by itself: its state, its progress and, once it has ended, its result or error."""

    id: str
    kind: str
    """eval or score."""
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: datetime
    finished_at: datetime | None
    progress: JobProgress
    result: R | None
    error: Problem | None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("succeeded", "failed", "cancelled")

    def has_advanced_from(self, earlier: "Job[R] | None") -> bool:
        """Whether the state, or the bytes or batches done, differ from those of an earlier answer."""
        return earlier is None or self._position != earlier._position

    @property
    def _position(self) -> tuple[object, ...]:
        return (self.state, self.progress.data, self.progress.models)

    def require_result(self) -> R:
        """The result of a job that has succeeded. Raises its error, or JobCancelled."""
        if self.result is not None:
            return self.result
        if self.error is not None:
            raise self.error.to_exception()
        if self.state == "cancelled":
            raise JobCancelled("the job was cancelled before it had a result")
        raise UnexpectedResponse(f"the job is {self.state} and has no result")


class JobPage(Response):
    """Some of the jobs, the newest first."""

    jobs: list[Job[EvalResponse | ScoreResponse]]
    next: str | None
    """What to give as `after` for the jobs that are older; None where there are none."""


class Health(Response):
    """The process lives."""

    status: str


class Device(Response):
    """One worker."""

    device: str
    """cpu or cuda:0, for example."""
    device_name: str
    ready: bool
    busy: bool
    restarts: int
    trouble: str
    """Empty when nothing is wrong."""
    node: str = ""
    """Of a cluster; empty for the service's own machine, and from older services."""


class Readiness(Response):
    """Requests are accepted, and by which workers."""

    status: str
    devices: list[Device]


class RequestLimits(Response):
    """The most that one request may ask for."""

    max_body_bytes: int
    max_data_bytes: int
    max_model_bytes: int
    max_models: int
    max_pieces: int
    max_targets: int
    max_screen_body_bytes: int
    queue_size: int
    request_timeout_seconds: float


class Info(Response):
    """What is served, within which limits."""

    version: str
    architecture_version: str
    architecture: dict[str, Any]
    architecture_name: str = ""
    """As in `Provenance.architecture`."""
    precision: str
    limits: RequestLimits
    devices: list[Device]
    versions: dict[str, str]
