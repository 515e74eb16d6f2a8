"""The OpenAPI document: the framework's, with the lengths of the architecture that is served."""

from typing import Any

from fastapi import FastAPI

from service.http_api.operations import NotReady
from service.http_api.screen_lines import ScreenLastLine, ScreenLine


def fit_openapi(app: FastAPI, *, embedding_dim: int) -> None:
    """Give target embeddings their length in the document and in its examples, so that these are accepted."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _fit(generate(), embedding_dim)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's own way to change the document


def _fit(document: dict[str, Any], embedding_dim: int) -> None:
    schemas = document["components"]["schemas"]
    not_ready = NotReady.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    not_ready.pop("$defs")
    schemas["NotReady"] = not_ready
    for line in (ScreenLine, ScreenLastLine):
        schema = line.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        schemas.update({name: each for name, each in schema.pop("$defs").items() if name not in schemas})
        schemas[line.__name__] = schema
    schemas["ScreenTarget"]["properties"]["embedding"].update(minItems=embedding_dim, maxItems=embedding_dim)
    for example in schemas["ScreenRequest"]["examples"]:
        for target in example["targets"]:
            target["embedding"] = [0.5] * embedding_dim
    for name in ("EvalRequest", "ScoreRequest"):
        target = schemas[name]["properties"]["target_embedding"]
        for variant in target.get("anyOf", [target]):
            if variant["type"] == "array":
                variant.update(minItems=embedding_dim, maxItems=embedding_dim)
        for example in schemas[name]["examples"]:
            if "target_embedding" in example:
                example["target_embedding"] = [0.5] * embedding_dim
