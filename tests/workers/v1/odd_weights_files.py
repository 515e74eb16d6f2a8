"""Odd weights files, by the name of their row in `golden/weights_files.json`."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    RawTensor,
    make_weights,
    safetensors_bytes,
    safetensors_file,
    safetensors_parts,
)

QUERY = "encoder.layers.0.attention.query.weight"
KEY = "encoder.layers.0.attention.key.weight"

Tensors = dict[str, NDArray[Any] | RawTensor]
Make = Callable[[], bytes]


def baseline() -> Tensors:
    """In the order of the header: sorted by name."""
    return dict(sorted(make_weights(SMALL_CONFIG, SMALL_WEIGHTS).items()))


def array(tensors: Tensors, name: str) -> NDArray[Any]:
    tensor = tensors[name]
    assert isinstance(tensor, np.ndarray)
    return tensor


def with_tensors(**changes: NDArray[Any] | RawTensor | None) -> Make:
    """The baseline with tensors replaced, added, or (None) left out; `__` stands for a dot."""

    def make() -> bytes:
        tensors = baseline()
        for name, tensor in changes.items():
            name = name.replace("__", ".")
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        return safetensors_bytes(tensors)

    return make


def with_query(tensor: NDArray[Any] | RawTensor) -> Make:
    return with_tensors(**{QUERY: tensor})


def reshaped(name: str, shape: tuple[int, ...]) -> Make:
    return lambda: safetensors_bytes({**baseline(), name: array(baseline(), name).reshape(shape)})


def with_value(name: str, index: object, value: float) -> Make:
    def make() -> bytes:
        tensors = baseline()
        array(tensors, name)[index] = value  # type: ignore[call-overload]
        return safetensors_bytes(tensors)

    return make


def every(convert: Callable[[NDArray[Any]], NDArray[Any] | RawTensor]) -> Make:
    return lambda: safetensors_bytes({name: convert(array(baseline(), name)) for name in baseline()})


def bf16(values: NDArray[np.float32]) -> RawTensor:
    """Rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return RawTensor("BF16", values.shape, rounded.astype(np.uint16).tobytes())


def third_layer() -> bytes:
    tensors = baseline()
    for name in [name for name in tensors if name.startswith("encoder.layers.1.")]:
        tensors[name.replace("layers.1.", "layers.2.")] = tensors[name]
    return safetensors_bytes(tensors)


def zero_final_norm() -> bytes:
    zeros = np.zeros(16, dtype=np.float32)
    return safetensors_bytes({**baseline(), "final_norm.gamma": zeros, "final_norm.beta": zeros})


def with_header(
    change: Callable[[dict[str, Any]], Mapping[str, Any] | str], body_prefix: bytes = b""
) -> Make:
    """The baseline with its header (a dict, or then its text) changed."""

    def make() -> bytes:
        header, bodies = safetensors_parts(baseline())
        return safetensors_file(change(header), body_prefix + b"".join(bodies))

    return make


def share_offsets(header: dict[str, Any]) -> dict[str, Any]:
    header[KEY]["data_offsets"] = header[QUERY]["data_offsets"]
    return header


def shift_offsets(header: dict[str, Any]) -> dict[str, Any]:
    for entry in header.values():
        entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    return header


def repeat_name(name: str, **changes: Any) -> Callable[[dict[str, Any]], str]:
    def change(header: dict[str, Any]) -> str:
        again = json.dumps({**header[name], **changes})
        return json.dumps(header)[:-1] + f', "{name}": {again}' + "}"

    return change


def other_offsets(header: dict[str, Any]) -> str:
    return repeat_name("final_norm.beta", data_offsets=header["final_norm.gamma"]["data_offsets"])(header)


def huge_offset(header: dict[str, Any]) -> dict[str, Any]:
    header["final_norm.beta"]["data_offsets"][1] = 2**62
    return header


def huge_shape(header: dict[str, Any]) -> dict[str, Any]:
    header["final_norm.beta"]["shape"] = [2**40, 2**40]
    return header


def unpadded() -> bytes:
    header, bodies = safetensors_parts(baseline())
    text = json.dumps(header)
    text += " " * (5 - len(text) % 4)  # a length that is no multiple of 4
    return safetensors_file(text, b"".join(bodies), padded=False)


def whole() -> bytes:
    return safetensors_bytes(baseline())


ones = np.ones((16, 16))
FILES: dict[str, Make] = {
    "baseline": whole,
    "missing-one-tensor": with_tensors(predictor__bias=None),
    "missing-final-norm-beta": with_tensors(final_norm__beta=None),
    "extra-tensor": with_tensors(unexpected__weight=np.zeros(3, dtype=np.float32)),
    "extra-layer": third_layer,
    "wrong-shape-bias": with_tensors(predictor__bias=np.zeros(263, dtype=np.float32)),
    "wrong-rank-bias": reshaped("predictor.bias", (1, 264)),
    "transposed-predictor": reshaped("predictor.weight", (264, 16)),
    "flattened-matrix": reshaped(QUERY, (256,)),
    "all-f16": every(lambda values: values.astype(np.float16)),
    "all-bf16": every(bf16),
    "all-f64": every(lambda values: values.astype(np.float64)),
    "one-f16": lambda: safetensors_bytes({**baseline(), QUERY: array(baseline(), QUERY).astype(np.float16)}),
    "one-i32": with_query(ones.astype(np.int32)),
    "one-i64": with_query(ones.astype(np.int64)),
    "one-u8": with_query(ones.astype(np.uint8)),
    "one-bool": with_query(ones.astype(np.bool_)),
    "one-f8": with_query(RawTensor("F8_E4M3", (16, 16), bytes(256))),
    "nan-in-bias": with_value("predictor.bias", 3, np.nan),
    "nan-in-unused-embedding-row": with_value("embedding.weight", 263, np.nan),
    "inf-in-bias": with_value("predictor.bias", 3, np.inf),
    "minus-inf-in-unused-logit-bias": with_value("predictor.bias", 3, -np.inf),
    "minus-inf-in-never-target-bias": with_value("predictor.bias", 260, -np.inf),
    "huge-embedding": with_tensors(embedding__weight=np.full((264, 16), 1e25, dtype=np.float32)),
    "zero-final-norm": zero_final_norm,
    "metadata-pt": lambda: safetensors_bytes(baseline(), {"format": "pt"}),
    "truncated-body": lambda: whole()[:-4],
    "trailing-bytes": lambda: whole() + bytes(4),
    "empty-file": bytes,
    "seven-bytes": lambda: bytes(7),
    "header-len-huge": lambda: struct.pack("<Q", 2**63) + whole()[8:],
    "header-not-json": lambda: struct.pack("<Q", 8) + b"not json" + bytes(64),
    "overlapping-offsets": with_header(share_offsets),
    "gap-at-start": with_header(shift_offsets, bytes(8)),
    "duplicate-key-same": with_header(repeat_name("final_norm.beta")),
    "duplicate-key-other": with_header(other_offsets),
    "unsorted-header": with_header(lambda header: dict(reversed(header.items()))),
    "unpadded-header": unpadded,
    "offset-overflow": with_header(huge_offset),
    "shape-overflow": with_header(huge_shape),
    "zero-size-extra": with_tensors(zero__size=np.zeros(0, dtype=np.float32)),
    "scalar-extra": with_tensors(scalar=np.zeros((), dtype=np.float32)),
    "prefix-key": lambda: safetensors_bytes({f"model.{name}": t for name, t in baseline().items()}),
}
