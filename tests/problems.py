"""Errors of the HTTP API as tests check them."""

from typing import Any

import httpx


def assert_problem(response: httpx.Response, code: str) -> dict[str, Any]:
    """The error has the one shape, and this code; returns it."""
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code, problem
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert set(problem) == {
        *("type", "title", "status", "detail", "instance", "code"),
        *("fault", "blob", "model_index", "retryable", "request_id"),
    }
    return problem
