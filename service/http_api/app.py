"""The HTTP API: its routes, and the application that serves them."""

import re
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from service.cancellation import cancel_when
from service.errors import Draining, InvalidRequest, NoWorker, OutOfResources, ScoringError
from service.http_api.accept import prefers_html
from service.http_api.api_keys import ApiKeys
from service.http_api.docs_page import docs_routes
from service.http_api.middleware import RequestMiddleware
from service.http_api.openapi import fit_openapi
from service.http_api.operations import Device, Health, Info, NotReady, Readiness, RequestLimits
from service.http_api.problems import (
    PROBLEM_JSON,
    problem_of_request,
    problem_response,
)
from service.http_api.requests import EvalRequest, ScoreRequest
from service.http_api.responses import (
    EvalResponse,
    JobPage,
    JobProgress,
    JobStatus,
    PhaseProgress,
    ScoreResponse,
)
from service.http_api.screen_lines import SCREEN_DOCUMENTED, OnAdmitted, ScreenLines
from service.http_api.screen_request import ScreenRequest
from service.http_api.status_page.error_pages import on_error, response_to_error
from service.http_api.status_page.routes import StatusPage
from service.jobs.job import Job, JobKind, JobState
from service.lifespan import Components
from service.metrics import CONTENT_TYPE
from service.scoring.competition import Competition
from service.scoring.results import CompetitionResult, Evaluation, Progress
from service.scoring.screen import ScreenSummary
from service.scoring.screener import Emit

OPENAPI_URL = "/openapi.json"

_PROBLEM_DOCUMENTED: dict[str, Any] = {
    "description": "What went wrong and whose fault it is.",
    "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_NOT_READY_DOCUMENTED: dict[str, Any] = {
    "description": "No request is taken now: the problem, and how the workers stand.",
    "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/NotReady"}}},
}

_IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")
_EVENT_ID = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


def create_app(components: Components) -> ASGIApp:
    """The HTTP API of a running service: the middleware around the routes."""
    app = FastAPI(
        title="soma-eval",
        version=version("soma-eval"),
        description="What a model's weights are worth: loss and embedding, as the network computes them.",
        responses={"4XX": _PROBLEM_DOCUMENTED, "5XX": _PROBLEM_DOCUMENTED},
        openapi_url=OPENAPI_URL,
        docs_url=None,  # ours is another
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own would export messages of errors, which may quote a request, wherever the environment says so.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.components = components
    documented_keys = [Depends(_API_KEY_DOCUMENTED)] if components.settings.api_keys else []
    app.include_router(_scoring, dependencies=documented_keys)
    app.include_router(_information, dependencies=documented_keys)
    app.include_router(_probes)
    docs = docs_routes(OPENAPI_URL, app.title)
    app.include_router(docs)
    api_keys = ApiKeys(components.settings.api_keys)
    app.state.status_page = status_page = StatusPage(components, api_keys.sessions)
    pages = status_page.routes()
    app.include_router(pages)
    for kind in (ScoringError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, on_error)
    fit_openapi(app, embedding_dim=components.architecture["embedding_dim"])
    included = [_scoring, _information, _probes, docs, pages]
    routes: list[BaseRoute] = [route for router in included for route in router.routes]
    return RequestMiddleware(
        app,
        routes=[*routes, *(route for route in app.routes if hasattr(route, "path"))],
        settings=components.settings,
        api_keys=api_keys,
        metrics=components.metrics,
        check_queue=components.scheduler.check_room,
        error_response=response_to_error,
    )


_scoring = APIRouter(tags=["scoring"])
_information = APIRouter(tags=["operations"])
_probes = APIRouter(tags=["operations"])
"""These need no API key."""

_API_KEY_DOCUMENTED = HTTPBearer(
    scheme_name="API key", description="One of the service's API keys.", auto_error=False
)
"""Puts the scheme into the OpenAPI document; the middleware has checked the key itself."""

Prefer = Annotated[list[str] | None, Header(description="`respond-async`: answer 202 and a job.")]
CacheControl = Annotated[
    list[str] | None, Header(description="`no-cache`: compute even what is kept from an earlier request.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Chosen by the client: the same key and request again give the same job, or its result, for a day."
    ),
]
ScreenKey = Annotated[
    str | None,
    Header(
        description="Chosen by the client: for a day it stands for this body, and another one is refused. "
        "What is kept of the first answer is not computed again.",
    ),
]
JobId = Annotated[str, Path(description="As the `Location` header of the 202 has it.")]


async def _components(request: Request) -> Components:  # a plain function would be called in a thread
    components: Components = request.app.state.components
    return components


ComponentsOfApp = Annotated[Components, Depends(_components)]


@_scoring.post("/eval", response_model=EvalResponse, responses={202: {"model": JobStatus}})
async def eval_one(
    body: EvalRequest,
    request: Request,
    components: ComponentsOfApp,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
    cache_control: CacheControl = None,
) -> Any:
    """Evaluate one model's weights on data with a seed."""
    competition = replace(body.to_competition(), compute_anew=_names(cache_control, "no-cache"))
    if _names(prefer, "respond-async") or idempotency_key is not None:
        return await _as_job("eval", competition, request, components, prefer, idempotency_key)
    return _result(await _while_connected(request, components.scorer.evaluate(competition)))


@_scoring.post("/score", response_model=ScoreResponse, responses={202: {"model": JobStatus}})
async def score(
    body: ScoreRequest,
    request: Request,
    components: ComponentsOfApp,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
    cache_control: CacheControl = None,
) -> Any:
    """Run a competition: every model on the same data; the lowest loss wins."""
    competition = replace(body.to_competition(), compute_anew=_names(cache_control, "no-cache"))
    if _names(prefer, "respond-async") or idempotency_key is not None:
        return await _as_job("score", competition, request, components, prefer, idempotency_key)
    return _result(await _while_connected(request, components.scorer.score(competition)))


@_scoring.get("/jobs")
async def list_jobs(
    request: Request,
    components: ComponentsOfApp,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many jobs at most.")] = 20,
    after: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{32}$", description="The id of a job: only older ones are listed."),
    ] = None,
) -> JobPage:
    """The jobs that run and those that are kept, the newest first."""
    jobs = await components.jobs.page(state=state, limit=limit, after=after)
    return JobPage(
        jobs=[_job_status(job, request) for job in jobs],
        next=jobs[-1].id if len(jobs) == limit else None,
    )


@_scoring.post("/screen", response_class=Response, responses={200: SCREEN_DOCUMENTED})
async def screen(
    body: ScreenRequest,
    request: Request,
    components: ComponentsOfApp,
    idempotency_key: ScreenKey = None,
    cache_control: CacheControl = None,
) -> Response:
    """Screen pieces of data: each with every model, against every target; a line for each as soon as it is known."""
    limits = components.settings
    screen = body.to_screen(components.architecture["embedding_dim"], limits.max_targets)
    screen = replace(screen, compute_anew=_names(cache_control, "no-cache"))
    pieces = body.to_pieces(limits.max_pieces)
    _check_idempotency_key(idempotency_key)

    async def work(emit: Emit, begin: OnAdmitted) -> ScreenSummary:
        async def on_admitted() -> None:
            if idempotency_key is not None:
                caller, content = request.scope["soma_eval.caller"], await request.body()
                await components.screen_keys.claim(caller, idempotency_key, content)
            await begin()

        return await components.screener.screen(screen, pieces, emit, on_admitted)

    return ScreenLines(screen, work, lambda: _watch_connection(request))


@_scoring.get("/jobs/{job_id}", response_model=JobStatus)
async def read_job(job_id: JobId, request: Request, response: Response, components: ComponentsOfApp) -> Any:
    """The state of a job, and its result once it has one; a page for people where `Accept` prefers text/html."""
    if prefers_html(request.scope):
        return await request.app.state.status_page.job(job_id, request)
    response.headers["Vary"] = "Accept"
    return _job_status(await components.jobs.get(job_id), request)


@_scoring.delete("/jobs/{job_id}")
async def cancel_job(job_id: JobId, request: Request, components: ComponentsOfApp) -> JobStatus:
    """Stop a job; a finished one stays as it is."""
    return _job_status(await components.jobs.cancel(job_id), request)


@_scoring.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "One event per change."},
        204: {"description": "The event of `Last-Event-ID` was the last one."},
    },
)
async def follow_job(
    job_id: JobId,
    request: Request,
    components: ComponentsOfApp,
    last_event_id: Annotated[
        str | None, Header(description="The id of an event that is known: only later ones are sent.")
    ] = None,
) -> Response:
    """Server-sent events: `progress` after each change, at last `succeeded`, `failed` or `cancelled`.

    Each event has the whole job, so a client that was away misses nothing by the events it did not see.
    """
    job = await components.jobs.get(job_id)
    known = int(last_event_id) if last_event_id and _EVENT_ID.fullmatch(last_event_id) else None
    if job.finished and job.event == known:
        return Response(status_code=HTTPStatus.NO_CONTENT)  # tells a browser not to connect again
    events = _events(job_id, known, request, components)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(
    job_id: str, known: int | None, request: Request, components: Components
) -> AsyncIterator[str]:
    try:
        async for job in components.jobs.follow(job_id, known):
            if job is None:
                yield ": no change\n\n"  # keeps what is between here and the client from closing the connection
                continue
            event = job.state if job.finished else "progress"
            data = _job_status(job, request).model_dump_json()
            yield f"event: {event}\nid: {job.event}\ndata: {data}\n\n"
    except ScoringError as error:  # the stream has begun, so it can only end; the client connects again
        request.scope["soma_eval.outcome"] = error.full_code


@_probes.head("/health", include_in_schema=False)
@_probes.get("/health")
async def health() -> Health:
    """200 while the process lives."""
    return Health()


@_probes.head("/ready", include_in_schema=False)
@_probes.get("/ready", response_model=Readiness, responses={503: _NOT_READY_DOCUMENTED})
async def ready(request: Request, components: ComponentsOfApp) -> Any:
    """200 only while a worker has recently passed a real evaluation, the disk works, and nothing is stopping."""
    readiness = Readiness(status=components.readiness(), devices=_devices(components))
    match readiness.status:
        case "ready":
            return readiness
        case "draining":
            error: ScoringError = Draining("the service is stopping")
        case "no-worker":
            error = NoWorker("no worker has recently passed its self-test")
        case "no-storage":
            error = OutOfResources(components.cache.trouble or "the disk of this machine does not work")
    problem = NotReady(**problem_of_request(error, request).model_dump(), devices=readiness.devices)
    return problem_response(error, problem, request)


@_information.head("/info", include_in_schema=False)
@_information.get("/info")
async def info(components: ComponentsOfApp) -> Info:
    """Architecture, devices, limits, versions."""
    return Info(
        version=version("soma-eval"),
        architecture_version=components.architecture_version,
        architecture=components.architecture,
        architecture_name=components.architecture_name,
        precision=components.settings.precision,
        limits=RequestLimits.model_validate(components.settings, from_attributes=True, extra="ignore"),
        devices=_devices(components),
        versions=components.versions,
    )


@_probes.head("/metrics", include_in_schema=False)
@_probes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(components: ComponentsOfApp) -> Response:
    """For Prometheus."""
    await components.metrics.refresh()
    return Response(components.metrics.render(), media_type=CONTENT_TYPE)


async def _as_job(
    kind: JobKind,
    competition: Competition,
    request: Request,
    components: Components,
    prefer: list[str] | None,
    idempotency_key: str | None,
) -> Response:
    """A job, or its result if the client waits. With an idempotency key it goes on when the client disconnects."""
    _check_idempotency_key(idempotency_key)
    job = await components.jobs.submit(
        kind, competition, caller=request.scope["soma_eval.caller"], idempotency_key=idempotency_key
    )
    request.scope["soma_eval.is_job"] = True
    if _names(prefer, "respond-async"):
        return _accepted(job, request)
    return _result(await _while_connected(request, components.jobs.wait(job.id)))


def _check_idempotency_key(key: str | None) -> None:
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("an Idempotency-Key has 1 to 255 printable ASCII characters")


def _result(result: Evaluation | CompetitionResult) -> Response:
    """The result as JSON; returned as a model, the framework would validate it a second time."""
    return Response(_response_of(result).model_dump_json(), media_type="application/json")


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work; stop it and raise ClientDisconnect when the client closes its connection.

    The work runs in this very task, so that it is admitted before the next request is read: of many requests at
    once, those beyond the queue are then refused by the middleware.
    """
    return await cancel_when(_watch_connection(request), work)


async def _watch_connection(request: Request) -> NoReturn:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


def _names(headers: list[str] | None, wish: str) -> bool:
    """Whether any header of this name has the wish in its list."""
    return wish in re.split(r"[,;\s]+", ",".join(headers or ()).lower())


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
        result=None if job.result is None else _response_of(job.result),
        error=problem_of_request(job.error, request) if job.error else None,
    )


def _response_of(result: Evaluation | CompetitionResult) -> EvalResponse | ScoreResponse:
    return EvalResponse.of(result) if isinstance(result, Evaluation) else ScoreResponse.of(result)


def _phase_progress(progress: Progress) -> PhaseProgress:
    return PhaseProgress.model_validate(progress, from_attributes=True, extra="ignore")


def _devices(components: Components) -> list[Device]:
    return [
        Device.model_validate(device, from_attributes=True, extra="ignore")
        for device in components.pool.status()
    ]
