"""The HTTP door: routes, and every failure as problem+json by one table."""

import re
from collections.abc import AsyncIterator, Awaitable
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from service import errors
from service.errors import Draining, InternalError, InvalidRequest, NoWorker, ScoringError
from service.http_gate import ClientLeft, Gate, on_client_left
from service.jobs import Job
from service.lifespan import Parts
from service.log import log_bug
from service.metrics import CONTENT_TYPE
from service.schemas import (
    Device,
    EvalRequest,
    EvalResponse,
    Health,
    Info,
    JobProgress,
    JobStatus,
    PhaseProgress,
    Problem,
    Readiness,
    ScoreRequest,
    ScoreResponse,
)
from service.unless import unless
from service.verdict import Evaluation, OnProgress, Progress, Verdict, ignore_progress

STATUS_OF: dict[type[ScoringError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidKey: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.JobNotFound: HTTPStatus.NOT_FOUND,
    errors.InvalidUrl: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ForbiddenUrl: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.BlobTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.ChecksumMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.SizeMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.BlobUnavailable: HTTPStatus.BAD_GATEWAY,
    errors.DownloadTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    errors.DecryptionFailed: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.WeightsInvalid: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NonFiniteResult: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ZeroEmbedding: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.EvaluationCrashesWorker: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.EmptyData: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Draining: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NoWorker: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.WorkerCrashed: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutOfMemory: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InsufficientStorage: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.OutOfResources: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""One row per failure; a test proves that none is missing."""

PROBLEM_JSON = "application/problem+json"
DEFAULT_RETRY_AFTER_SECONDS = 5.0

T = TypeVar("T")


def create_app(parts: Parts) -> ASGIApp:
    """The HTTP door over a service that is up: the gate, and behind it the routes."""
    app = FastAPIOffline(  # its /docs runs no script of another host: keys are typed in there
        title="soma-eval",
        version=version("soma-eval"),
        description="What a model's weights are worth: loss and embedding, as the network computes them.",
        responses={"4XX": _PROBLEM_DOCUMENTED, "5XX": _PROBLEM_DOCUMENTED},
        redoc_url=None,
    )
    app.state.parts = parts
    app.include_router(_scoring)
    app.include_router(_operations)
    app.add_exception_handler(ScoringError, _on_scoring_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientLeft, _on_client_left)
    app.add_exception_handler(Exception, _on_bug)
    return Gate(
        app,
        settings=parts.settings,
        metrics=parts.metrics,
        check_room=parts.scheduler.check_room,
        refuse=_refuse,
    )


_scoring = APIRouter(tags=["scoring"])
_operations = APIRouter(tags=["operations"])

Prefer = Annotated[list[str] | None, Header(description="`respond-async`: answer 202 and a job.")]


async def _parts(request: Request) -> Parts:  # a plain function would be called in a thread
    parts: Parts = request.app.state.parts
    return parts


PartsOfApp = Annotated[Parts, Depends(_parts)]


@_scoring.post("/eval", response_model=EvalResponse, responses={202: {"model": JobStatus}})
async def eval_one(body: EvalRequest, request: Request, parts: PartsOfApp, prefer: Prefer = None) -> Any:
    """Evaluate one model's weights on data with a seed."""
    competition = body.to_competition()

    def work(on_progress: OnProgress) -> Awaitable[Evaluation]:
        return parts.scorer.evaluate(competition, on_progress)

    if _wants_async(prefer):
        return _accepted(await parts.jobs.submit("eval", 1, work), request)
    return _answer(EvalResponse.of(await _while_connected(request, work(ignore_progress))))


@_scoring.post("/score", response_model=ScoreResponse, responses={202: {"model": JobStatus}})
async def score(body: ScoreRequest, request: Request, parts: PartsOfApp, prefer: Prefer = None) -> Any:
    """Run a competition: every model on the same data; the lowest loss wins."""
    competition = body.to_competition()

    def work(on_progress: OnProgress) -> Awaitable[Verdict]:
        return parts.scorer.score(competition, on_progress)

    if _wants_async(prefer):
        return _accepted(await parts.jobs.submit("score", len(competition.models), work), request)
    return _answer(ScoreResponse.of(await _while_connected(request, work(ignore_progress))))


@_scoring.get("/jobs/{job_id}")
async def read_job(job_id: str, request: Request, parts: PartsOfApp) -> JobStatus:
    """How a job stands, and its result once it has one."""
    return _job_status(parts.jobs.get(job_id), request)


@_scoring.delete("/jobs/{job_id}")
async def cancel_job(job_id: str, request: Request, parts: PartsOfApp) -> JobStatus:
    """Stop a job; a finished one stays as it is."""
    return _job_status(await parts.jobs.cancel(job_id), request)


@_scoring.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "One event per change."}},
)
async def follow_job(job_id: str, request: Request, parts: PartsOfApp) -> StreamingResponse:
    """Server-sent events: `progress` after each change, at last `succeeded`, `failed` or `cancelled`."""
    parts.jobs.get(job_id)
    return StreamingResponse(_events(job_id, request, parts), media_type="text/event-stream")


async def _events(job_id: str, request: Request, parts: Parts) -> AsyncIterator[str]:
    async for job in parts.jobs.follow(job_id):
        status = _job_status(job, request)
        event = job.state if job.finished else "progress"
        yield f"event: {event}\ndata: {status.model_dump_json()}\n\n"


@_operations.head("/health", include_in_schema=False)
@_operations.get("/health")
async def health() -> Health:
    """200 while the process lives."""
    return Health()


@_operations.head("/ready", include_in_schema=False)
@_operations.get("/ready", response_model=Readiness)
async def ready(request: Request, parts: PartsOfApp) -> Any:
    """200 only while a worker has recently passed a real evaluation, and the service is not stopping."""
    readiness = Readiness(status=parts.readiness(), devices=_devices(parts))
    match readiness.status:
        case "ready":
            return readiness
        case "draining":
            error: ScoringError = Draining("the service is stopping")
        case "no-worker":
            error = NoWorker("no worker has recently passed its self-test")
    return _refuse(error, request, devices=[device.model_dump() for device in readiness.devices])


@_operations.head("/info", include_in_schema=False)
@_operations.get("/info")
async def info(parts: PartsOfApp) -> Info:
    """What is served: architecture, devices, limits, versions."""
    return Info(
        version=version("soma-eval"),
        architecture_version=parts.architecture_version,
        architecture=parts.architecture,
        precision=parts.settings.precision,
        limits=parts.settings.limits(),
        devices=_devices(parts),
        versions=parts.versions,
    )


@_operations.head("/metrics", include_in_schema=False)
@_operations.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(parts: PartsOfApp) -> Response:
    """For Prometheus."""
    return Response(parts.metrics.render(), media_type=CONTENT_TYPE)


def _answer(model: EvalResponse | ScoreResponse) -> Response:
    """The model as JSON, as it is: handed to the framework, it would be validated and taken apart once more."""
    return Response(model.model_dump_json(), media_type="application/json")


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work; stop it and raise ClientLeft when the client closes its connection.

    The work runs in this very task, so that it is admitted before the next request is looked at: of many that
    come at once, all that find no place are then refused at the gate.
    """
    return await unless(_watch_connection(request), work)


async def _watch_connection(request: Request) -> NoReturn:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientLeft


def _wants_async(prefer: list[str] | None) -> bool:
    """Whether any of the request's `Prefer` lines asks for it."""
    return "respond-async" in re.split(r"[,;\s]+", ",".join(prefer or ()).lower())


def _accepted(job: Job, request: Request) -> JSONResponse:
    return JSONResponse(
        _job_status(job, request).model_dump(mode="json"),
        HTTPStatus.ACCEPTED,
        headers={"Location": f"/jobs/{job.id}", "Preference-Applied": "respond-async"},
    )


def _job_status(job: Job, request: Request) -> JobStatus:
    return JobStatus(
        id=job.id,
        kind=job.kind,
        state=job.state,
        created_at=job.created_at.isoformat(),
        finished_at=job.finished_at.isoformat() if job.finished_at else None,
        progress=JobProgress(
            data=_phase_progress(job.data) if job.data else None,
            models=[_phase_progress(progress) for progress in job.models],
            estimated_seconds_left=job.estimated_seconds_left(),
        ),
        result=_result_of(job),
        error=_problem(job.error, request)[1] if job.error else None,
    )


def _result_of(job: Job) -> EvalResponse | ScoreResponse | None:
    match job.result:
        case Evaluation() as evaluation:
            return EvalResponse.of(evaluation)
        case Verdict() as verdict:
            return ScoreResponse.of(verdict)
        case None:
            return None


def _phase_progress(progress: Progress) -> PhaseProgress:
    return PhaseProgress.model_validate(progress, from_attributes=True, extra="ignore")


def _devices(parts: Parts) -> list[Device]:
    return [
        Device.model_validate(device, from_attributes=True, extra="ignore") for device in parts.pool.status()
    ]


_PROBLEM_DOCUMENTED: dict[str, Any] = {
    "description": "What went wrong and whose fault it is.",
    "content": {PROBLEM_JSON: {"schema": Problem.model_json_schema()}},
}


def _problem(error: ScoringError, request: Request) -> tuple[HTTPStatus, Problem]:
    status = STATUS_OF[type(error)]
    return status, Problem(
        type=f"urn:soma-eval:problem:{error.full_code}",
        title=error.title,
        status=status,
        detail=error.detail,
        instance=request.url.path,
        code=error.full_code,
        fault=error.fault,
        blob=error.blob,
        model_index=error.model_index,
        retryable=error.retryable,
        request_id=request.scope["soma_eval.request_id"],
    )


def _refuse(error: ScoringError, request: Request, **extension_members: Any) -> JSONResponse:
    """The response for a failure, wherever it arose."""
    status, problem = _problem(error, request)
    request.scope["soma_eval.outcome"] = error.full_code
    headers = {}
    if error.retryable and status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = f"{error.retry_after_seconds or DEFAULT_RETRY_AFTER_SECONDS:.0f}"
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    content = {**problem.model_dump(mode="json"), **extension_members}
    return JSONResponse(content, status, headers, media_type=PROBLEM_JSON)


async def _on_scoring_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ScoringError)
    return _refuse(error, request)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _refuse(InvalidRequest(describe(error.errors())), request)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Routes and methods that do not exist: the framework's own refusals in our shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.BAD_REQUEST:  # what it says of JSON nested beyond all measure
        return _refuse(InvalidRequest("the body is not JSON"), request)
    status = HTTPStatus(error.status_code)
    problem = Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=status.description or status.phrase,
        instance=request.url.path,
        code="-".join(status.phrase.lower().split()),
        fault="client",
        blob=None,
        model_index=None,
        retryable=False,
        request_id=request.scope["soma_eval.request_id"],
    )
    request.scope["soma_eval.outcome"] = problem.code
    return JSONResponse(problem.model_dump(mode="json"), status, error.headers, media_type=PROBLEM_JSON)


async def _on_client_left(request: Request, error: Exception) -> Response:
    return on_client_left(request)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log_bug(error)
    return _refuse(InternalError("an unexpected error; the log has it under the request's id"), request)


_FIELD_NAME = re.compile(r"[a-z][a-z_]{0,31}")


def describe(failures: Any) -> str:
    """Which field is wrong and how, without anything of what it held."""
    lines = []
    for failure in failures[:8]:
        place = ".".join(
            str(part) if isinstance(part, int) or _FIELD_NAME.fullmatch(part) else "?"
            for part in failure["loc"]
            if part != "body"
        )
        reason = "the body is not JSON" if failure["type"] == "json_invalid" else failure["msg"]
        lines.append(f"{place}: {reason}" if place and failure["type"] != "json_invalid" else reason)
    return "; ".join(lines)
