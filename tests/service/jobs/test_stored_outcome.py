"""Errors and progress come back from the database as they were."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from service.errors import (
    BlobError,
    ChecksumMismatch,
    InternalError,
    QueueFull,
    ScoringError,
    ServiceTrouble,
    SubmissionRejected,
    WeightsInvalid,
)
from service.jobs.stored_outcome import (
    error_from,
    error_to_dict,
    eval_result_from,
    eval_result_to_dict,
    progress_from_json,
    progress_to_json,
)
from service.scoring.results import Progress
from tests.service.jobs.scripted_scorer import evaluation

BASES = (ScoringError, BlobError, SubmissionRejected, ServiceTrouble)


def every_error(kind: type[ScoringError] = ScoringError) -> Iterator[ScoringError]:
    for child in kind.__subclasses__():
        # Commands have errors of their own, in other modules.
        if child not in BASES and child.__module__ == ScoringError.__module__:
            yield child("a detail", blob="data") if issubclass(child, BlobError) else child("a detail")
        yield from every_error(child)


@pytest.mark.parametrize("error", list(every_error()), ids=lambda error: type(error).__name__)
def test_an_error_comes_back(error: ScoringError) -> None:
    found = error_from(json.loads(json.dumps(error_to_dict(error))))
    assert type(found) is type(error)
    assert (vars(found), str(found), found.full_code) == (vars(error), str(error), error.full_code)


def test_with_all_that_is_known_of_it() -> None:
    for error in (
        ChecksumMismatch("other bytes", blob="model", model_index=3, fault="client"),
        WeightsInvalid("no header").with_model_index(1),
        QueueFull("full", retry_after_seconds=2.5),
    ):
        assert vars(error_from(error_to_dict(error))) == vars(error)


def test_an_error_of_another_version_is_an_internal_one() -> None:
    found = error_from({**error_to_dict(QueueFull("full")), "class": "FromTheFuture"})
    assert type(found) is InternalError


def test_a_result_that_an_earlier_version_has_kept_has_nothing_along_the_data() -> None:
    result = replace(evaluation().result, cross_entropy_along=(1 / 3, 0.1))
    kept = json.loads(json.dumps(eval_result_to_dict(result)))
    assert eval_result_from(kept).cross_entropy_along == (1 / 3, 0.1)
    del kept["cross_entropy_along"]
    assert eval_result_from(kept).cross_entropy_along == ()


def test_progress_comes_back() -> None:
    data = Progress("downloading", blob="data", bytes_done=1, bytes_total=2, bytes_per_second=0.5)
    models = [
        Progress("queued", model_index=0),
        Progress("evaluating", model_index=1, batches_done=1, num_batches=9),
    ]
    assert progress_from_json(progress_to_json(data, models)) == (data, models)
    assert progress_from_json(progress_to_json(None, models)) == (None, models)


def test_the_error_of_a_model_comes_back_with_its_progress() -> None:
    failed = Progress("failed", model_index=1, error=WeightsInvalid("no header", model_index=1))
    _, (found,) = progress_from_json(progress_to_json(None, [failed]))
    assert (type(found.error), str(found.error)) == (WeightsInvalid, str(failed.error))
    assert found.error is not None
    assert found.error.model_index == 1
    by_an_earlier_version = json.loads(progress_to_json(None, [failed]))
    del by_an_earlier_version[1][0]["error"]
    _, (found,) = progress_from_json(json.dumps(by_an_earlier_version))
    assert found.error is None
