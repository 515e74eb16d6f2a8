"""What the package exports, and what it imports."""

import importlib.metadata
import subprocess
import sys

import pytest

import soma_eval
from workers import v1

PUBLISHED = [
    *(
        "ModelRunner",
        "ModelConfig",
        "SIGRegConfig",
        "EvalOutput",
        "Model",
        "SIGReg",
        "compute_loss",
        "tokenize",
    ),
    *("Client", "AsyncClient"),
]


def test_every_name_is_there_and_listed() -> None:
    assert set(PUBLISHED) <= set(soma_eval.__all__) <= set(dir(soma_eval))
    for name in soma_eval.__all__:
        assert getattr(soma_eval, name).__module__.startswith(("soma_eval.", "workers.v1."))


def test_the_names_of_the_model_are_those_of_v1() -> None:
    for name in PUBLISHED[:-2]:
        assert getattr(soma_eval, name) is getattr(v1, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        soma_eval.Runner  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert soma_eval.__version__ == importlib.metadata.version("soma-eval")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import soma_eval", ["torch", "httpx", "pydantic", "workers", "service"]),
        ("import soma_eval; soma_eval.Client; soma_eval.AsyncClient", ["torch", "workers", "service"]),
        ("import soma_eval; soma_eval.ModelConfig; soma_eval.tokenize", ["torch", "httpx", "service"]),
        pytest.param("import soma_eval; soma_eval.ModelRunner", ["httpx", "service"], marks=pytest.mark.slow),
    ],
)
def test_only_what_is_used_is_imported(code: str, absent: list[str]) -> None:
    report = f"import sys; {code}; print([name for name in {absent} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
