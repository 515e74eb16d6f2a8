"""The one place where an architecture meets the rest: its errors have a row each."""

import pytest

from workers import errors
from workers.architectures import CURRENT_VERSION, load_architecture, refusals_translated
from workers.v1 import errors as v1_errors


@pytest.mark.parametrize("kind", v1_errors.EvaluationRefused.__subclasses__())
def test_every_error_of_the_architecture_is_translated(kind: type[v1_errors.EvaluationRefused]) -> None:
    architecture = load_architecture(CURRENT_VERSION)
    with pytest.raises(errors.EvaluationRefused) as raised, refusals_translated(architecture):
        raise kind("why")
    assert type(raised.value).__name__ == kind.__name__
    assert raised.value.detail == "why"


def test_other_errors_pass() -> None:
    with pytest.raises(OSError, match="disk"), refusals_translated(load_architecture(CURRENT_VERSION)):
        raise OSError("disk")
