"""The OpenAPI document, tried against the live service: no answer that it does not name, no server error."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.live_service import LiveService

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    *("POST /eval", "POST /score", "GET /health", "GET /ready", "GET /info", "GET /metrics"),
    *("GET /jobs/{job_id}", "DELETE /jobs/{job_id}", "GET /jobs/{job_id}/events"),
]


def test_every_operation_is_documented(service: LiveService) -> None:
    paths = httpx.get(f"{service.http_url}/openapi.json", trust_env=False).json()["paths"]
    documented = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert documented == set(OPERATIONS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_operation(label: str, service: LiveService) -> None:
    method, path = label.split()
    operation = schemathesis.openapi.from_url(f"{service.http_url}/openapi.json")[path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def attempt(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS, timeout=30)

    attempt()
