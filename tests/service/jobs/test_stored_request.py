"""A stored request is the request, with all that decides its answer."""

from dataclasses import replace

import pytest

from service.blob import BlobRef
from service.errors import InvalidKey
from service.jobs.stored_request import request_from_bytes, request_to_bytes
from service.scoring.competition import Competition, ModelManifest

INLINE = Competition(
    b"\0data", (ModelManifest(BlobRef("https://a.example/w", "1" * 32, 7), bytes(32)),), 2**64 - 1
)
BY_URL = replace(
    INLINE, data=BlobRef("https://a.example/d"), models=(ModelManifest(BlobRef("https://a.example/w")),)
)


@pytest.mark.parametrize(
    "competition",
    [INLINE, BY_URL, replace(INLINE, target_embedding=(0.1, -1e-30)), replace(INLINE, compute_anew=True)],
    ids=["inline", "by URL", "with a target", "computed anew"],
)
def test_a_request_comes_back(competition: Competition) -> None:
    assert request_from_bytes(request_to_bytes(competition)) == competition


def test_the_error_of_a_malformed_model_comes_back() -> None:
    broken = replace(INLINE, models=(InvalidKey("no key", fault="model_owner", blob="model"),))
    (error,) = request_from_bytes(request_to_bytes(broken)).models
    assert isinstance(error, InvalidKey)
    assert (error.detail, error.fault, error.blob) == ("no key", "model_owner", "model")
