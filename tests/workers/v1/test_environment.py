"""A runner on a GPU says what in the environment changes its numbers."""

import warnings

import pytest

from workers.v1 import ModelConfig, ModelRunner, SIGReg


@pytest.fixture(autouse=True)
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner can be made for a GPU that is not there."""
    monkeypatch.setattr(SIGReg, "to", lambda self, device: self)


def test_it_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setenv("CUBLAS_EMULATE_SINGLE_PRECISION", "1")
    with pytest.warns(
        RuntimeWarning, match="CUBLAS_EMULATE_SINGLE_PRECISION, NVIDIA_TF32_OVERRIDE may change"
    ):
        ModelRunner(ModelConfig.small(), "cuda")


def test_torch_own_switch_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelRunner(ModelConfig.small(), "cuda")


def test_on_a_cpu_they_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelRunner(ModelConfig.small(), "cpu")
