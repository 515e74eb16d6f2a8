"""Every error as problem+json: the table of statuses, routes that do not exist, requests that are not valid."""

import json
from typing import Any

import httpx
import pytest

from service import errors
from service.http_api.problems import STATUS_OF
from tests.problems import assert_problem

JSON = {"content-type": "application/json"}


def every_error() -> list[type[errors.ScoringError]]:
    """All classes of errors with a code of their own."""
    found, todo = [], [errors.ScoringError]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if "code" in vars(cls) and cls.__module__ == errors.__name__:
            found.append(cls)
    return found


def test_every_error_has_a_status() -> None:
    assert set(STATUS_OF) == set(every_error())


def test_only_trouble_is_retryable() -> None:
    retryable = {cls.code for cls in every_error() if cls.retryable}
    assert retryable == {
        *("{blob}-unavailable", "download-timeout", "queue-full", "draining", "no-worker"),
        *("deadline-exceeded", "worker-crashed", "out-of-memory", "out-of-resources"),
        *("insufficient-storage", "interrupted"),
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"seed": NaN}', b'{"weights_url": Infinity}', b"\xff\xfe", b"[" * 100_000],
    ids=["no body", "half", "a list", "null", "NaN", "Infinity", "not UTF-8", "deep"],
)
def test_a_body_that_is_no_request(body: bytes, client: httpx.Client) -> None:
    response = client.post("/eval", content=body, headers=JSON)
    assert_problem(response, "invalid-request")


def test_nan_in_the_target_is_no_server_error(client: httpx.Client, plain: dict[str, Any]) -> None:
    body = json.dumps({**plain, "target_embedding": [float("nan")] * 16})
    problem = assert_problem(client.post("/eval", content=body, headers=JSON), "invalid-request")
    assert "finite" in problem["detail"]


def test_routes_and_methods_that_do_not_exist(client: httpx.Client) -> None:
    assert_problem(client.get("/nothing"), "not-found")
    assert_problem(client.post("/eval/"), "not-found")
    assert_problem(client.put("/eval"), "method-not-allowed")
    assert_problem(client.get("/jobs/unknown"), "job-not-found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/jobs/x", "DELETE, GET"), ("/eval", "POST"), ("/health", "GET, HEAD"), ("/openapi.json", "GET, HEAD")],
)
def test_the_response_to_a_wrong_method_names_the_allowed_ones(
    path: str, allowed: str, client: httpx.Client
) -> None:
    response = client.put(path)
    assert_problem(response, "method-not-allowed")
    assert response.headers["allow"] == allowed
