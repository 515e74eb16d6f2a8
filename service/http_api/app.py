"""The HTTP door: routes, and every failure as problem+json by one table."""

import math
import re
from collections.abc import AsyncIterator, Awaitable
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from service import errors
from service.cancellation import cancel_when
from service.errors import (
    Draining,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NoWorker,
    OutOfResources,
    ScoringError,
    exhaustion_of,
)
from service.http_api.api_keys import challenge
from service.http_api.docs_page import docs_routes
from service.http_api.middleware import CLIENT_LEFT_STATUS, RequestMiddleware
from service.http_api.openapi import fit_openapi
from service.http_api.schemas import (
    Device,
    EvalRequest,
    EvalResponse,
    Health,
    Info,
    JobProgress,
    JobStatus,
    NotReady,
    PhaseProgress,
    Problem,
    Readiness,
    RequestLimits,
    ScoreRequest,
    ScoreResponse,
)
from service.jobs.jobs import Job
from service.lifespan import Components
from service.log import log_bug
from service.metrics import CONTENT_TYPE
from service.scoring.results import CompetitionResult, Evaluation, OnProgress, Progress, ignore_progress

STATUS_OF: dict[type[ScoringError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidKey: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
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
OPENAPI_URL = "/openapi.json"
DEFAULT_RETRY_AFTER_SECONDS = 5.0

_PROBLEM_DOCUMENTED: dict[str, Any] = {
    "description": "What went wrong and whose fault it is.",
    "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_NOT_READY_DOCUMENTED: dict[str, Any] = {
    "description": "No request is taken now: the problem, and how the workers stand.",
    "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/NotReady"}}},
}

T = TypeVar("T")


def create_app(parts: Components) -> ASGIApp:
    """The HTTP door over a service that is up: the gate, and behind it the routes."""
    app = FastAPI(
        title="soma-eval",
        version=version("soma-eval"),
        description="What a model's weights are worth: loss and embedding, as the network computes them.",
        responses={"4XX": _PROBLEM_DOCUMENTED, "5XX": _PROBLEM_DOCUMENTED},
        openapi_url=OPENAPI_URL,
        docs_url=None,  # ours is another
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = parts
    documented_keys = [Depends(_API_KEY_DOCUMENTED)] if parts.settings.api_keys else []
    app.include_router(_scoring, dependencies=documented_keys)
    app.include_router(_information, dependencies=documented_keys)
    app.include_router(_probes)
    docs = docs_routes(OPENAPI_URL, app.title)
    app.include_router(docs)
    for kind in (ScoringError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _on_error)
    fit_openapi(app, embedding_dim=parts.architecture["embedding_dim"])
    included = [_scoring, _information, _probes, docs]
    routes: list[BaseRoute] = [route for router in included for route in router.routes]
    return RequestMiddleware(
        app,
        routes=[*routes, *(route for route in app.routes if hasattr(route, "path"))],
        settings=parts.settings,
        metrics=parts.metrics,
        check_room=parts.scheduler.check_room,
        refuse=_response_to,
    )


_scoring = APIRouter(tags=["scoring"])
_information = APIRouter(tags=["operations"])
_probes = APIRouter(tags=["operations"])
"""These need no API key."""

_API_KEY_DOCUMENTED = HTTPBearer(
    scheme_name="API key", description="One of the service's API keys.", auto_error=False
)
"""Puts the scheme into the OpenAPI document; the key itself is checked before a request comes here."""

Prefer = Annotated[list[str] | None, Header(description="`respond-async`: answer 202 and a job.")]
JobId = Annotated[str, Path(description="As the `Location` header of the 202 has it.")]


async def _parts(request: Request) -> Components:  # a plain function would be called in a thread
    parts: Components = request.app.state.parts
    return parts


ComponentsOfApp = Annotated[Components, Depends(_parts)]


@_scoring.post("/eval", response_model=EvalResponse, responses={202: {"model": JobStatus}})
async def eval_one(body: EvalRequest, request: Request, parts: ComponentsOfApp, prefer: Prefer = None) -> Any:
    """Evaluate one model's weights on data with a seed."""
    competition = body.to_competition()

    def work(on_progress: OnProgress) -> Awaitable[Evaluation]:
        return parts.scorer.evaluate(competition, on_progress)

    if _wants_async(prefer):
        return _accepted(await parts.jobs.submit("eval", 1, work), request)
    return _answer(EvalResponse.of(await _while_connected(request, work(ignore_progress))))


@_scoring.post("/score", response_model=ScoreResponse, responses={202: {"model": JobStatus}})
async def score(body: ScoreRequest, request: Request, parts: ComponentsOfApp, prefer: Prefer = None) -> Any:
    """Run a competition: every model on the same data; the lowest loss wins."""
    competition = body.to_competition()

    def work(on_progress: OnProgress) -> Awaitable[CompetitionResult]:
        return parts.scorer.score(competition, on_progress)

    if _wants_async(prefer):
        return _accepted(await parts.jobs.submit("score", len(competition.models), work), request)
    return _answer(ScoreResponse.of(await _while_connected(request, work(ignore_progress))))


@_scoring.get("/jobs/{job_id}")
async def read_job(job_id: JobId, request: Request, parts: ComponentsOfApp) -> JobStatus:
    """How a job stands, and its result once it has one."""
    return _job_status(parts.jobs.get(job_id), request)


@_scoring.delete("/jobs/{job_id}")
async def cancel_job(job_id: JobId, request: Request, parts: ComponentsOfApp) -> JobStatus:
    """Stop a job; a finished one stays as it is."""
    return _job_status(await parts.jobs.cancel(job_id), request)


@_scoring.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "One event per change."}},
)
async def follow_job(job_id: JobId, request: Request, parts: ComponentsOfApp) -> StreamingResponse:
    """Server-sent events: `progress` after each change, at last `succeeded`, `failed` or `cancelled`."""
    parts.jobs.get(job_id)
    return StreamingResponse(_events(job_id, request, parts), media_type="text/event-stream")


async def _events(job_id: str, request: Request, parts: Components) -> AsyncIterator[str]:
    async for job in parts.jobs.follow(job_id):
        status = _job_status(job, request)
        event = job.state if job.finished else "progress"
        yield f"event: {event}\ndata: {status.model_dump_json()}\n\n"


@_probes.head("/health", include_in_schema=False)
@_probes.get("/health")
async def health() -> Health:
    """200 while the process lives."""
    return Health()


@_probes.head("/ready", include_in_schema=False)
@_probes.get("/ready", response_model=Readiness, responses={503: _NOT_READY_DOCUMENTED})
async def ready(request: Request, parts: ComponentsOfApp) -> Any:
    """200 only while a worker has recently passed a real evaluation, the disk works, and nothing is stopping."""
    readiness = Readiness(status=parts.readiness(), devices=_devices(parts))
    match readiness.status:
        case "ready":
            return readiness
        case "draining":
            error: ScoringError = Draining("the service is stopping")
        case "no-worker":
            error = NoWorker("no worker has recently passed its self-test")
        case "no-storage":
            error = OutOfResources(parts.cache.trouble or "the disk of this machine does not work")
    problem = NotReady(**_problem(error, request).model_dump(), devices=readiness.devices)
    return _refuse(error, problem, request)


@_information.head("/info", include_in_schema=False)
@_information.get("/info")
async def info(parts: ComponentsOfApp) -> Info:
    """What is served: architecture, devices, limits, versions."""
    return Info(
        version=version("soma-eval"),
        architecture_version=parts.architecture_version,
        architecture=parts.architecture,
        precision=parts.settings.precision,
        limits=RequestLimits.model_validate(parts.settings, from_attributes=True, extra="ignore"),
        devices=_devices(parts),
        versions=parts.versions,
    )


@_probes.head("/metrics", include_in_schema=False)
@_probes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(parts: ComponentsOfApp) -> Response:
    """For Prometheus."""
    return Response(parts.metrics.render(), media_type=CONTENT_TYPE)


def _answer(model: EvalResponse | ScoreResponse) -> Response:
    """The model as JSON, as it is: handed to the framework, it would be validated and taken apart once more."""
    return Response(model.model_dump_json(), media_type="application/json")


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work; stop it and raise ClientDisconnect when the client closes its connection.

    The work runs in this very task, so that it is admitted before the next request is looked at: of many that
    come at once, all that find no place are then refused at the gate.
    """
    return await cancel_when(_watch_connection(request), work)


async def _watch_connection(request: Request) -> NoReturn:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


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
        error=_problem(job.error, request) if job.error else None,
    )


def _result_of(job: Job) -> EvalResponse | ScoreResponse | None:
    match job.result:
        case Evaluation() as evaluation:
            return EvalResponse.of(evaluation)
        case CompetitionResult() as verdict:
            return ScoreResponse.of(verdict)
        case None:
            return None


def _phase_progress(progress: Progress) -> PhaseProgress:
    return PhaseProgress.model_validate(progress, from_attributes=True, extra="ignore")


def _devices(parts: Components) -> list[Device]:
    return [
        Device.model_validate(device, from_attributes=True, extra="ignore") for device in parts.pool.status()
    ]


def _problem(error: ScoringError, request: Request) -> Problem:
    return Problem(
        type=f"urn:soma-eval:problem:{error.full_code}",
        title=error.title,
        status=STATUS_OF[type(error)],
        detail=error.detail,
        instance=request.scope["path"],
        code=error.full_code,
        fault=error.fault,
        blob=error.blob,
        model_index=error.model_index,
        retryable=error.retryable,
        request_id=request.scope["soma_eval.request_id"],
    )


async def _on_error(request: Request, error: Exception) -> Response:
    return _response_to(error, request)


def _response_to(error: Exception, request: Request) -> Response:
    """The response for a failure, wherever it arose."""
    if isinstance(error, ClientDisconnect):
        request.scope["soma_eval.outcome"] = "client-left"
        return Response(status_code=CLIENT_LEFT_STATUS)  # which goes nowhere
    failure = _as_scoring_error(error, request)
    return _refuse(failure, _problem(failure, request), request)


def _refuse(error: ScoringError, problem: Problem, request: Request) -> JSONResponse:
    request.scope["soma_eval.outcome"] = error.full_code
    headers = {}
    if error.retryable and problem.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        seconds = error.retry_after_seconds or DEFAULT_RETRY_AFTER_SECONDS
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = challenge(problem.instance)
    if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _methods_of(request)
    return JSONResponse(problem.model_dump(mode="json"), problem.status, headers, media_type=PROBLEM_JSON)


def _as_scoring_error(error: Exception, request: Request) -> ScoringError:
    match error:
        case ScoringError():
            return error
        case RequestValidationError():
            return InvalidRequest(describe(error.errors()))
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return NotFound("there is nothing at this path")
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            return MethodNotAllowed(f"this path takes {_methods_of(request)}")
        case HTTPException(status_code=HTTPStatus.BAD_REQUEST):  # for JSON that is nested too deep
            return InvalidRequest("the body is not JSON")
    log_bug(error)
    if (trouble := exhaustion_of(error)) is not None:
        return trouble
    return InternalError("an unexpected error; the log has it under the request's id")


def _methods_of(request: Request) -> str:
    """What all routes of the request's path take."""
    routes = request.scope["soma_eval.routes"]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


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
