"""A competition as bytes and back. They hold keys and URLs, so they are only ever stored sealed."""

import base64
import json
from typing import Any

from service.blob import BlobRef
from service.errors import ScoringError
from service.jobs.stored_outcome import error_from, error_to_dict
from service.scoring.competition import Competition, ModelManifest


def request_to_bytes(competition: Competition) -> bytes:
    """The same bytes for every request that asks the same."""
    data = competition.data
    content = {
        "data": _text(data) if isinstance(data, bytes) else _blob_to_dict(data),
        "models": [_model_to_dict(model) for model in competition.models],
        "seed": competition.seed,
        "target_embedding": competition.target_embedding,
        "compute_anew": competition.compute_anew,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def request_from_bytes(content: bytes) -> Competition:
    """What `request_to_bytes` was given."""
    found = json.loads(content)
    data, target = found["data"], found["target_embedding"]
    return Competition(
        data=base64.b64decode(data) if isinstance(data, str) else BlobRef(**data),
        models=tuple(_model_from(model) for model in found["models"]),
        seed=found["seed"],
        target_embedding=None if target is None else tuple(target),
        compute_anew=found.get("compute_anew", False),
    )


def _model_to_dict(model: ModelManifest | ScoringError) -> dict[str, Any]:
    if isinstance(model, ScoringError):
        return {"error": error_to_dict(model)}
    key = model.decryption_key
    return {"weights": _blob_to_dict(model.weights), "key": None if key is None else _text(key)}


def _model_from(found: dict[str, Any]) -> ModelManifest | ScoringError:
    if "error" in found:
        return error_from(found["error"])
    key = found["key"]
    return ModelManifest(BlobRef(**found["weights"]), None if key is None else base64.b64decode(key))


def _blob_to_dict(blob: BlobRef) -> dict[str, Any]:
    return {"url": blob.url, "checksum": blob.checksum, "size": blob.size}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
