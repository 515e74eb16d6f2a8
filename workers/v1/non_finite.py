"""NaN and infinity in a weights file: the network loads such weights, and most of them give no finite loss.

Needs no torch. The file is read once, in pieces, and decrypted on the way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig
from .header_entries import TensorInfo
from .weights_header import expected_shapes, read_header
from .weights_source import PIECE_BYTES, Source, check_key, open_source, read_clear

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The dtypes that can hold NaN or infinity, as numpy reads them; it has no bfloat16."""


@dataclass(frozen=True, slots=True)
class NonFiniteTensor:
    """A tensor in which some elements are NaN or infinite."""

    name: str
    num_nan: int
    num_infinite: int
    num_elements: int


def find_non_finite(
    path: Path,
    decryption_key: bytes | None = None,
    on_progress: Callable[[int], None] | None = None,
    config: ModelConfig | None = None,
) -> list[NonFiniteTensor]:
    """The tensors of a file that hold NaN or infinity, in the order in which the model uses them.

    Only tensors that a model of this shape (the network's by default) needs are looked at: in any other tensor NaN is
    harmless, since the network ignores it. Elements count as the network sees them, converted to float32: a float64
    beyond float32 is infinite. `on_progress` is called with the number of bytes read so far.

    Raises WeightsInvalid or DecryptionFailed for a file that the network does not accept, OSError of the file.
    """
    config = config or ModelConfig()
    report = on_progress or (lambda done: None)
    check_key(decryption_key)
    found: list[NonFiniteTensor] = []
    num_read = 0
    with open_source(path) as source:
        header = read_header(
            lambda offset, size: read_clear(source, offset, size, decryption_key),
            source.size,
            config,
            encrypted=decryption_key is not None,
        )
        for name in expected_shapes(config):
            info = header.tensors[name]
            num_nan = num_infinite = 0
            for start in range(info.begin, info.end, PIECE_BYTES):
                end = min(start + PIECE_BYTES, info.end)
                if info.dtype in _FLOATS:
                    values = _read_floats(source, info, start, end, decryption_key)
                    num_nan += int(np.isnan(values).sum())
                    num_infinite += int(np.isinf(values).sum())
                num_read += end - start
                report(num_read)
            if num_nan or num_infinite:
                num_elements = int(np.prod(info.shape, dtype=np.int64))
                found.append(NonFiniteTensor(name, num_nan, num_infinite, num_elements))
        report(source.size)
    return found


def _read_floats(
    source: Source, info: TensorInfo, start: int, end: int, key: bytes | None
) -> NDArray[np.floating]:
    """These bytes of a tensor, which hold whole elements, as float32 or what converts to it without loss."""
    elements = np.frombuffer(read_clear(source, start, end - start, key), dtype=_FLOATS[info.dtype])
    if info.dtype == "BF16":
        return (elements.astype("<u4") << np.uint32(16)).view("<f4")
    if info.dtype == "F64":
        with np.errstate(over="ignore"):
            return elements.astype("<f4")
    return elements
