"""The client's answers have the fields of the service's API document."""

import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from soma_eval import responses
from soma_eval.responses import EvalResponse, Problem, Response
from tests.soma_eval.answers import answer

SCHEMA_OF = {"Job": "JobStatus"}
"""Where the client's name is not that of the document. `Problem` is the error of one model too."""


def answers() -> dict[str, type[Response]]:
    found = {name: kind for name, kind in vars(responses).items() if isinstance(kind, type)}
    return {
        SCHEMA_OF.get(name, name): kind
        for name, kind in found.items()
        if issubclass(kind, Response) and kind is not Response
    }


def test_every_field_of_an_answer_is_read(client: httpx.Client) -> None:
    schemas: dict[str, Any] = client.get("/openapi.json").json()["components"]["schemas"]
    read = answers()
    for name, kind in read.items():
        assert set(kind.model_fields) == set(schemas[name]["properties"]), name
    assert set(schemas["ModelError"]["properties"]) <= set(Problem.model_fields)
    asked = {"EvalRequest", "ScoreRequest", "Manifest", "ModelError", "NotReady"}
    asked |= {"ScreenRequest", "ScreenPiece", "ScreenedModel", "ScreenTarget"}
    assert set(schemas) - asked - {"HTTPValidationError", "ValidationError"} == set(read)


def test_fields_of_a_newer_service_are_ignored() -> None:
    newer = answer() | {"brand_new": 1}
    newer["timings"]["brand_new"] = True
    assert read(newer) == read(answer())


@pytest.mark.parametrize(
    "change",
    [
        {"loss": float("nan")},
        {"loss": "1.5"},
        {"loss": None},
        {"embedding": [1.0, float("inf")]},
        {"attends_to_future": 1},
        {"timings": []},
    ],
)
def test_odd_fields_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        read(answer() | change)


def read(body: dict[str, Any]) -> EvalResponse:
    return EvalResponse.model_validate_json(json.dumps(body))
