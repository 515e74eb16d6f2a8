"""What of this process's environment a worker is started with."""

import pytest

from workers.processes.child_process import worker_environment
from workers.types import WorkerConfig

CHANGE_NUMBERS = [
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "CUBLAS_EMULATE_DOUBLE_PRECISION",
    "CUBLAS_EMULATION_STRATEGY",
    "CUBLAS_EMULATION_SPECIAL_VALUES_SUPPORT_MASK",
    "CUBLAS_FIXEDPOINT_EMULATION_MANTISSA_BIT_COUNT",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "PYTORCH_TUNABLEOP_ENABLED",
    "ONEDNN_DEFAULT_FPMATH_MODE",
]


@pytest.mark.parametrize("variable", CHANGE_NUMBERS)
def test_what_changes_numbers_behind_our_back_is_not_passed_on(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert variable not in worker_environment(WorkerConfig("cuda:0"))


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "LD_LIBRARY_PATH"])
def test_the_rest_is(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert worker_environment(WorkerConfig("cuda:0"))[variable] == "1"


def test_the_workspace_of_products_is_always_the_one_that_is_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    assert worker_environment(WorkerConfig("cuda:0"))["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
