"""The OpenAPI document, tested against a running service: no response that it does not name, no server error."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.config import Settings
from service.http_api.app import create_app
from service.lifespan import Components
from service.metrics import Metrics
from tests.in_process_service import InProcessService
from workers.types import DeviceStatus

pytestmark = pytest.mark.slow

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    *("POST /eval", "POST /score", "POST /screen", "GET /health", "GET /ready", "GET /info", "GET /metrics"),
    *("GET /jobs", "GET /jobs/{job_id}", "DELETE /jobs/{job_id}", "GET /jobs/{job_id}/events"),
]
GUARDED = set(OPERATIONS) - {"GET /health", "GET /ready", "GET /metrics"}


def test_every_operation_is_documented(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    documented = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert documented == set(OPERATIONS)


def test_every_field_is_described(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    fields = {
        f"{schema}.{name}": field
        for schema, content in document["components"]["schemas"].items()
        for name, field in content.get("properties", {}).items()
    }
    fields |= {
        f"{path} {parameter['name']}": parameter
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
    }
    assert len(fields) > 100
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize(("path", "schema"), [("/eval", "EvalRequest"), ("/score", "ScoreRequest")])
def test_the_examples_are_requests(path: str, schema: str, client: httpx.Client) -> None:
    (example,) = client.get("/openapi.json").json()["components"]["schemas"][schema]["examples"]
    job = client.post(path, json=example, headers={"Prefer": "respond-async"})
    assert job.status_code == 202, job.text
    client.delete(job.headers["location"])


@pytest.mark.parametrize("readiness", ["ready", "draining", "no-worker", "no-storage"])
def test_readiness_is_as_documented(readiness: str, tmp_path: Path) -> None:
    worker = DeviceStatus(device="cpu", device_name="a CPU", ready=False, busy=True, pid=1, restarts=3)
    components = SimpleNamespace(
        settings=Settings(data_dir=tmp_path),
        architecture={"embedding_dim": 16},
        metrics=Metrics(),
        closing=asyncio.Event(),
        readiness=lambda: readiness,
        cache=SimpleNamespace(trouble="the disk of this machine is full"),
        pool=SimpleNamespace(status=lambda: (worker,)),
        scheduler=SimpleNamespace(check_room=lambda: None),
    )
    app = create_app(cast(Components, components))
    case = schemathesis.openapi.from_asgi("/openapi.json", app)["/ready"]["GET"].Case()
    response = case.call_and_validate(checks=CHECKS[1:])
    assert response.status_code == (200 if readiness == "ready" else 503)
    assert response.json()["devices"][0]["restarts"] == 3


def test_the_document_names_the_keys_where_they_are_needed(tmp_path: Path) -> None:
    for keys, guarded in (((), set()), ((SecretStr("canary"),), GUARDED)):
        components = SimpleNamespace(
            settings=Settings(data_dir=tmp_path, api_keys=keys),
            architecture={"embedding_dim": 16},
            metrics=Metrics(),
            closing=asyncio.Event(),
            scheduler=SimpleNamespace(check_room=lambda: None),
        )
        app = create_app(cast(Components, components))
        headers = {"Authorization": "Bearer canary"}
        document = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers).raw_schema
        needing = {
            f"{method.upper()} {path}"
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if operation.get("security")
        }
        assert needing == guarded


@pytest.mark.parametrize("label", OPERATIONS)
def test_operation(label: str, api: InProcessService) -> None:
    method, path = label.split()
    operation = schemathesis.openapi.from_url(f"{api.http_url}/openapi.json")[path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def attempt(case: schemathesis.Case[Any]) -> None:
        assume("publisher.example" not in str(case.body))  # it does not exist, and that takes seconds to find
        case.call_and_validate(checks=CHECKS, timeout=30)

    attempt()
