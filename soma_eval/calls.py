"""The calls of the HTTP API as values: what each sends, and what its answer is. No input or output happens here."""

import base64
import functools
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar
from urllib.parse import quote, urlencode

import base58

from .responses import (
    EvalResponse,
    Health,
    Info,
    Job,
    JobPage,
    Readiness,
    Response,
    ScoreResponse,
    ScreenLine,
)

P = ParamSpec("P")
R = TypeVar("R", bound=Response)

AnyJob = Job[EvalResponse | ScoreResponse]


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """One model of a competition, as the network describes it."""

    url: str = field(repr=False)
    """Where the weights are published."""
    checksum: str
    """Blake2b-256 of the file as published, Base58."""
    size: int
    """Length of the file as published, in bytes."""
    decryption_key: str | bytes | None = field(default=None, repr=False)
    """32 bytes, or their Base58; None for weights that are not encrypted."""


@dataclass(frozen=True, slots=True)
class ScreenPiece:
    """One piece of data of a screen: bytes, or published at a URL."""

    data: bytes | None = field(default=None, repr=False)
    data_url: str | None = field(default=None, repr=False)
    data_checksum: str | None = None
    """Only with `data_url`; None: not verified."""
    data_size: int | None = None
    """Only with `data_url`; None: not known."""
    id: int | str | None = None
    """What the piece is called in its result; None: its position, counted from 0."""


@dataclass(frozen=True, slots=True)
class ScreenModel:
    """One model of a screen."""

    url: str = field(repr=False)
    checksum: str | None = None
    """None: not verified."""
    size: int | None = None
    """None: not known."""
    decryption_key: str | bytes | None = field(default=None, repr=False)
    """32 bytes, or their Base58; None for weights that are not encrypted."""
    id: int | str | None = None
    """What the model is called in targets and results; None: its position, counted from 0."""


@dataclass(frozen=True, slots=True)
class ScreenTarget:
    """A target of the network, and the models that compete for it."""

    embedding: Sequence[float] = field(repr=False)
    distance_threshold: float
    """A piece hits the target when its winner's distance is not larger."""
    model_ids: Sequence[int | str] | None = None
    """Its models, in its own order; None: all."""
    id: int | str | None = None
    """What the target is called in results; None: its position, counted from 0."""


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One call: a request, and the type of its answer."""

    method: str
    path: str
    response: type[R]
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_retried: bool = True
    """False where the caller wants to know how things are now."""
    idempotency_key: str = ""
    """By which the service knows that it was sent before; empty for none."""
    has_key_at_once: bool = False
    """Whether the first try has the key too. With it, work goes on when its connection closes."""

    @property
    def is_repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once, so that a broken connection is no harm."""
        return self.method != "POST" or self.idempotency_key != ""


def eval(
    *,
    weights_url: str,
    data: bytes | None = None,
    data_url: str | None = None,
    data_checksum: str | None = None,
    data_size: int | None = None,
    weights_checksum: str | None = None,
    weights_size: int | None = None,
    decryption_key: str | bytes | None = None,
    seed: int = 0,
    target_embedding: Sequence[float] | None = None,
    compute_anew: bool = False,
) -> Call[EvalResponse]:
    """Evaluate one model's weights on data with a seed.

    The data are bytes, or published at `data_url`; `data_checksum` and `data_size` go with the URL. The decryption key
    is 32 bytes or their Base58, None for weights that are not encrypted. With a target the answer has a distance.
    `compute_anew`: even what is kept from an earlier request.
    """
    body = {
        "data": None if data is None else base64.b64encode(data).decode("ascii"),
        "data_url": data_url,
        "data_checksum": data_checksum,
        "data_size": data_size,
        "weights_url": weights_url,
        "weights_checksum": weights_checksum,
        "weights_size": weights_size,
        "decryption_key": _key_text(decryption_key),
        "seed": seed,
        "target_embedding": None if target_embedding is None else _numbers(target_embedding),
    }
    return _post("/eval", body, EvalResponse, compute_anew)


def score(
    *,
    data_url: str,
    data_checksum: str,
    data_size: int,
    model_manifests: Sequence[ModelManifest],
    target_embedding: Sequence[float],
    seed: int,
    compute_anew: bool = False,
) -> Call[ScoreResponse]:
    """Run a competition: every model on the same data; the lowest loss wins.

    `compute_anew`: even what is kept from an earlier request.
    """
    body = {
        "data_url": data_url,
        "data_checksum": data_checksum,
        "data_size": data_size,
        "model_manifests": [
            {
                "url": manifest.url,
                "checksum": manifest.checksum,
                "size": manifest.size,
                "decryption_key": _key_text(manifest.decryption_key),
            }
            for manifest in model_manifests
        ],
        "target_embedding": _numbers(target_embedding),
        "seed": seed,
    }
    return _post("/score", body, ScoreResponse, compute_anew)


def as_job(build: Callable[P, Call[R]], response: type[Job[R]]) -> Callable[P, Call[Job[R]]]:
    """The same call as a job: the answer comes at once, and the work goes on."""

    @functools.wraps(build)
    def submit(*args: P.args, **kwargs: P.kwargs) -> Call[Job[R]]:
        call = build(*args, **kwargs)
        headers = {**call.headers, "Prefer": "respond-async"}
        return Call(
            *(call.method, call.path, response, call.body, headers),
            idempotency_key=call.idempotency_key,
            has_key_at_once=True,
        )

    return submit


def screen(
    *,
    pieces: Sequence[bytes | ScreenPiece],
    models: Sequence[ScreenModel | ModelManifest],
    targets: Sequence[ScreenTarget] = (),
    seed: int = 0,
) -> Call[ScreenLine]:
    """Evaluate many pieces of data with some models, and measure them against some targets.

    Gives the result of each piece as soon as it is known, and at the end a `summary`. A piece or a model that fails
    has its error in the results, and costs the others nothing. `info().limits` says how much one screen may hold.
    Where the connection is lost it is sent again, with an Idempotency-Key, and goes on: what the service has computed
    it keeps.
    """
    body = {
        "pieces": [_piece(piece) for piece in pieces],
        "models": [
            _given(
                id=model.id if isinstance(model, ScreenModel) else None,
                url=model.url,
                checksum=model.checksum,
                size=model.size,
                decryption_key=_key_text(model.decryption_key),
            )
            for model in models
        ],
        "targets": [
            _given(
                id=target.id,
                embedding=_numbers(target.embedding),
                distance_threshold=float(target.distance_threshold),
                model_ids=None if target.model_ids is None else list(target.model_ids),
            )
            for target in targets
        ],
        "seed": seed,
    }
    return _post("/screen", body, ScreenLine)


submit_eval = as_job(eval, Job[EvalResponse])
submit_score = as_job(score, Job[ScoreResponse])


def job(job_id: str) -> Call[AnyJob]:
    """How a job stands, by its id."""
    return Call("GET", _job_path(job_id), AnyJob)


def jobs(*, state: str | None = None, limit: int = 20, after: str | None = None) -> Call[JobPage]:
    """The jobs, newest first: at most `limit` of them, in one state, and older than the job whose id is `after`."""
    query = {"state": state, "limit": limit, "after": after}
    given = {name: value for name, value in query.items() if value is not None}
    return Call("GET", f"/jobs?{urlencode(given)}", JobPage)


def cancel(job: Job[R]) -> Call[Job[R]]:
    """Stop a job; a finished one stays as it is."""
    return Call("DELETE", _job_path(job.id), type(job))


def events(job: Job[R]) -> Call[Job[R]]:
    """How a job stands, again after each change."""
    return Call("GET", f"{_job_path(job.id)}/events", type(job), headers={"Accept": "text/event-stream"})


def health() -> Call[Health]:
    """The process lives."""
    return Call("GET", "/health", Health, is_retried=False)


def ready() -> Call[Readiness]:
    """Requests are accepted now. Raises Draining, NoWorker or OutOfResources where they are not."""
    return Call("GET", "/ready", Readiness, is_retried=False)


def info() -> Call[Info]:
    """What is served: architecture, devices, limits, versions."""
    return Call("GET", "/info", Info)


def _post(path: str, body: Mapping[str, Any], response: type[R], compute_anew: bool = False) -> Call[R]:
    no_cache = {"Cache-Control": "no-cache"} if compute_anew else {}
    headers = {"Content-Type": "application/json", **no_cache}
    return Call("POST", path, response, _json(_given(**body)), headers, idempotency_key=str(uuid.uuid4()))


def _piece(piece: bytes | ScreenPiece) -> dict[str, Any]:
    if isinstance(piece, bytes):
        piece = ScreenPiece(piece)
    return _given(
        id=piece.id,
        data=None if piece.data is None else base64.b64encode(piece.data).decode("ascii"),
        data_url=piece.data_url,
        data_checksum=piece.data_checksum,
        data_size=piece.data_size,
    )


def _given(**body: Any) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False).encode()


def _key_text(key: str | bytes | None) -> str | None:
    return base58.b58encode(key).decode("ascii") if isinstance(key, bytes) else key


def _numbers(embedding: Sequence[float]) -> list[float]:
    """Numbers that JSON can hold, from numpy's or torch's too."""
    return [float(number) for number in embedding]


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
