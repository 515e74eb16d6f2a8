"""Errors as problem+json (RFC 9457): the status of every error, and the response to every exception."""

import math
import re
from http import HTTPStatus
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service import errors
from service.errors import (
    BlobKind,
    Fault,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ScoringError,
    all_codes,
    exhaustion_of,
)
from service.http_api.api_keys import challenge
from service.http_api.schema import Schema
from service.log import log_bug

PROBLEM_JSON = "application/problem+json"
CLIENT_DISCONNECTED_STATUS = 499
"""For the log and the metrics; there is no client any more to send it to."""
DEFAULT_RETRY_AFTER_SECONDS = 5.0

STATUS_OF: dict[type[ScoringError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidKey: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.JobNotFound: HTTPStatus.NOT_FOUND,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
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
    errors.Interrupted: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""One row per error; a test proves that none is missing."""


class ModelError(Schema):
    """Why one model of a competition has no result, or no distance."""

    code: Annotated[
        str, Field(validation_alias=AliasChoices("full_code", "code"), examples=list(all_codes()))
    ]
    """Names the failure."""
    title: str
    """The same for every error of this code."""
    detail: str
    """What happened this time; never a key or a URL."""
    fault: Fault
    """Who can correct it."""
    blob: BlobKind | None
    """Whether the error is about the data or about a model's weights."""
    model_index: int | None
    """Which model of the request, counted from 0; null where it is not about one of several."""
    retryable: bool
    """False where every validator comes to the same result; true for trouble that may pass."""


class Problem(ModelError):
    """An error, as RFC 9457 has it, with this service's own members."""

    type: str
    """A URN that contains the code."""
    status: int
    """The HTTP status."""
    instance: str
    """The path of the request."""
    request_id: str
    """Also in the header `X-Request-Id` and in the service's log."""


def model_error_of(error: ScoringError) -> ModelError:
    """The error as its schema."""
    return ModelError.model_validate(error, from_attributes=True, extra="ignore")


def problem_of(error: ScoringError, *, path: str, request_id: str, status: int | None = None) -> Problem:
    """The error as its schema; the status is that of the table where none is given."""
    return Problem(
        **model_error_of(error).model_dump(),
        type=f"urn:soma-eval:problem:{error.full_code}",
        status=status or STATUS_OF[type(error)],
        instance=path,
        request_id=request_id,
    )


def problem_of_request(error: ScoringError, request: Request) -> Problem:
    """The error of this request as its schema."""
    return problem_of(error, path=request.scope["path"], request_id=request.scope["soma_eval.request_id"])


def error_response(error: Exception, request: Request) -> Response:
    """The response to an exception, wherever it was raised."""
    if isinstance(error, ClientDisconnect):
        request.scope["soma_eval.outcome"] = "client-disconnected"
        return Response(status_code=CLIENT_DISCONNECTED_STATUS)
    failure = error_of_exception(error, request)
    return problem_response(failure, problem_of_request(failure, request), request)


def problem_response(error: ScoringError, problem: Problem, request: Request) -> JSONResponse:
    """The problem with the headers that belong to its status."""
    request.scope["soma_eval.outcome"] = error.full_code
    request.scope["soma_eval.fault"] = error.fault
    headers = {}
    if error.retryable and problem.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        seconds = error.retry_after_seconds or DEFAULT_RETRY_AFTER_SECONDS
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = challenge(problem.instance)
    if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed_methods(request)
    return JSONResponse(problem.model_dump(mode="json"), problem.status, headers, media_type=PROBLEM_JSON)


def error_of_exception(error: Exception, request: Request) -> ScoringError:
    """The exception as this service's error; an unexpected one is logged."""
    match error:
        case ScoringError():
            return error
        case RequestValidationError():
            return InvalidRequest(describe(error.errors()))
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            return NotFound("there is nothing at this path")
        case HTTPException(status_code=HTTPStatus.METHOD_NOT_ALLOWED):
            return MethodNotAllowed(f"this path takes {_allowed_methods(request)}")
        case HTTPException(status_code=HTTPStatus.BAD_REQUEST):  # for JSON that is nested too deep
            return InvalidRequest("the body is not JSON")
    log_bug(error)
    if (trouble := exhaustion_of(error)) is not None:
        return trouble
    return InternalError("an unexpected error; the log has it under the request's id")


def _allowed_methods(request: Request) -> str:
    """Of all routes of the request's path."""
    routes = request.scope["soma_eval.routes"]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


_FIELD_NAME = re.compile(r"[a-z][a-z_]{0,31}")
_MAX_DESCRIBED = 8


def describe(failures: Any) -> str:
    """Which fields are wrong and how, without anything of what they held.

    A field that may be of several types is named once, with what is wrong by each.
    """
    if failures[0]["type"] == "json_invalid":
        return "the body is not JSON"
    messages: dict[str, dict[str, None]] = {}
    for failure in failures[:_MAX_DESCRIBED]:
        messages.setdefault(_field(failure), {})[failure["msg"]] = None
    wrong = {field: ", or: ".join(of_field) for field, of_field in messages.items()}
    return "; ".join(f"{field}: {what}" if field else what for field, what in wrong.items())


def _field(failure: Any) -> str:
    """Its path. What is no name of ours is the client's own text, or what pydantic calls one of a field's types."""
    is_unknown = failure["type"] == "extra_forbidden"
    parts = (part for part in failure["loc"] if part != "body")
    named = (str(part) if isinstance(part, int) or _FIELD_NAME.fullmatch(part) else "?" for part in parts)
    return ".".join(part for part in named if part != "?" or is_unknown)
