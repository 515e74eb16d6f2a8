"""One exception class for each error code, and the tree as its file draws it."""

import pickle
import re

import pytest

from service.errors import all_codes
from soma_eval import errors
from soma_eval.errors import (
    CLASS_OF_CODE,
    ApiError,
    QueueFull,
    RequestError,
    ServiceError,
    SomaEvalError,
    SubmissionError,
    TemporaryError,
    class_of,
)
from soma_eval.responses import Problem


def test_every_code_of_the_service_has_its_class() -> None:
    assert set(all_codes()) <= set(CLASS_OF_CODE)
    assert len(set(CLASS_OF_CODE.values())) == len(CLASS_OF_CODE)


def drawn(kind: type[SomaEvalError], indent: str = "") -> list[tuple[str, str]]:
    """(indent and name, code) of every class below."""
    found = []
    children = kind.__subclasses__()
    for child in children:
        is_last = child is children[-1]
        found.append((f"{indent}{'└' if is_last else '├'}── {child.__name__}", getattr(child, "code", "")))
        found += drawn(child, indent + ("    " if is_last else "│   "))
    return found


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    lines = re.findall(r"^([│ ]*[├└]── \w+)(?: {2,}(.*))?$", errors.__doc__, re.MULTILINE)
    assert [line for line, _ in lines] == [line for line, _ in drawn(SomaEvalError)]
    codes = dict(drawn(SomaEvalError))
    assert [text for line, text in lines if codes[line]] == [code for code in codes.values() if code]


@pytest.mark.parametrize(
    ("fault", "retryable", "expected"),
    [
        ("client", False, RequestError),
        ("data_submitter", False, SubmissionError),
        ("model_owner", False, SubmissionError),
        ("service", False, ServiceError),
        ("service", True, TemporaryError),
        ("model_owner", True, TemporaryError),
        ("somebody new", False, ServiceError),
    ],
)
def test_an_unknown_code_is_of_its_kind(fault: str, retryable: bool, expected: type[ApiError]) -> None:
    assert class_of("brand-new", fault, retryable) is expected
    error = Problem(code="brand-new", detail="why", fault=fault, retryable=retryable).to_exception()
    assert (type(error), error.code, error.retryable, str(error)) == (
        expected,
        "brand-new",
        retryable,
        "why (brand-new)",
    )


def test_an_error_keeps_what_it_knows_across_processes() -> None:
    error = QueueFull("full", fault="service", retryable=True, status=429, retry_after_seconds=5.0)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (QueueFull, "full (queue-full)", vars(error))
