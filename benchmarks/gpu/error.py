"""How far a tensor is from the same in float64."""

from typing import NamedTuple

from torch import Tensor


class Error(NamedTuple):
    """Each relative to the exact tensor as a whole."""

    rms: float
    """2-norm of the difference over that of the exact one."""
    max: float
    """The largest difference over the largest element."""
    shrink: float
    """By what share the magnitudes are too large; below 0 where sums were cut off rather than rounded."""


def error_of(found: Tensor, exact: Tensor) -> Error:
    """`exact` is float64, of the same shape."""
    difference = found.double() - exact
    return Error(
        float(difference.norm() / exact.norm()),
        float(difference.abs().max() / exact.abs().max()),
        float((difference * exact.sign()).sum() / exact.abs().sum()),
    )
