"""Variables of the environment by which a library computes otherwise than this package asks of it."""

import os
import warnings

_NAMES = frozenset(
    {
        "NVIDIA_TF32_OVERRIDE",  # cuBLAS: TF32 in every product, or in none
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",  # torch's own precision, until it is set
        "TORCH_BLAS_PREFER_CUBLASLT",  # from here on: another library or kernel, so another order of the sums
        "DISABLE_ADDMM_CUDA_LT",
        "CUBLASLT_WORKSPACE_SIZE",
        "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
        "DNNL_DEFAULT_FPMATH_MODE",  # oneDNN, on a CPU: float32 products in bf16
        "ONEDNN_DEFAULT_FPMATH_MODE",
    }
)
_PREFIXES = (
    "CUBLAS_EMULATE_",  # cuBLAS: float32 as products of bf16, float64 as products of integers
    "CUBLAS_EMULATION_",
    "CUBLAS_FIXEDPOINT_EMULATION_",
    "PYTORCH_TUNABLEOP_",  # torch: the kernel that was fastest just now
    "TORCH_MKLDNN_MATMUL_",  # torch, on an ARM CPU: which library multiplies
)


def changes_numbers(variable: str) -> bool:
    """Whether a variable of this name does.

    Not MKL_CBWR and its like: they are set so that different CPUs give the same bits.
    """
    return variable in _NAMES or variable.startswith(_PREFIXES)


def warn_of_changed_numbers() -> None:
    """Warn of such variables of this process, which cannot be undone: libraries read them when they are opened."""
    found = {variable for variable in os.environ if changes_numbers(variable)}
    found.discard("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # a runner sets torch's precision
    if found:
        warnings.warn(
            f"{', '.join(sorted(found))} may change the numbers of every evaluation: start Python without",
            RuntimeWarning,
            stacklevel=3,
        )
