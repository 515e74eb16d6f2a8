"""Judging a weights file by its header, before a byte of its body is touched. Needs no torch.

A safetensors file is 8 bytes (the header's length, little-endian), the header (JSON), and the tensors.
The network reads it with the safetensors crate, that is with serde_json, then looks for the tensors it
needs. The verdict here is the same one, so this reader is as strict as serde_json where Python's json is
not (NaN, lone surrogates, numbers beyond 64 bits or float64, nesting beyond 127), and as lenient where one
would not expect it (a tensor's entry may be an array; a name may stand twice, and the last one counts).
The tests hold it against the library on generated headers.

Names out of a file are hostile text: they are shortened and escaped in every message.
"""

import contextlib
import gc
import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .config import ModelConfig
from .errors import DecryptionFailed, WeightsInvalid

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer ones."""

LENGTH_BYTES = 8

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Every dtype the safetensors library (0.8) knows; any other name spoils the whole file."""

CONVERTIBLE_DTYPES = frozenset(
    ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U8", "BOOL"]
)
"""What the network converts to float32 where it needs a tensor; it refuses U16 and the small floats."""

_MAX_DEPTH = 127
_MAX_USIZE = 2**64 - 1
_MAX_FINDINGS = 5

Read = Callable[[int, int], bytes | memoryview]
"""(offset, size) -> that many bytes of the file, decrypted."""


class NoHeader(Exception):
    """The bytes hold no safetensors header at all: what a wrong decryption key looks like."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header has it; begin and end are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """A header that is in order in itself. Whether it has the tensors of a model is for `findings`."""

    tensors: dict[str, TensorInfo]


def read_header(read: Read, file_size: int, config: ModelConfig, *, encrypted: bool) -> WeightsHeader:
    """The header of a file the network accepts as weights of this shape, or the verdict on it.

    `read` gives decrypted bytes; it is asked for the first 8, then for the header. `encrypted` says
    whether they come out of a decryption: then bytes that make no header mean that the key is wrong.

    Raises WeightsInvalid or DecryptionFailed.
    """
    if file_size < LENGTH_BYTES:
        raise WeightsInvalid(f"the file has {file_size} bytes: too few for a safetensors header")
    try:
        size = header_size(bytes(read(0, LENGTH_BYTES)), file_size)
        header = parse_header(bytes(read(LENGTH_BYTES, size)), file_size)
    except NoHeader as error:
        if encrypted:
            raise DecryptionFailed(
                "the key does not fit: what it yields is not a safetensors file"
            ) from error
        raise WeightsInvalid(f"not a safetensors file: {error} (is it encrypted?)") from error
    found = findings(header, config)
    if found:
        more = f"; and {len(found) - _MAX_FINDINGS} more" if len(found) > _MAX_FINDINGS else ""
        raise WeightsInvalid("; ".join(found[:_MAX_FINDINGS]) + more)
    return header


def header_size(first_bytes: bytes, file_size: int) -> int:
    """The length of the header, out of the first 8 bytes of a file. Raises NoHeader if it cannot be one."""
    if len(first_bytes) < LENGTH_BYTES:
        raise NoHeader(f"the file has {file_size} bytes: too few for a header")
    size = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if size > MAX_HEADER_BYTES:
        raise NoHeader(f"its header would have {size} bytes, more than the {MAX_HEADER_BYTES} allowed")
    if LENGTH_BYTES + size > file_size:
        raise NoHeader(f"its header would have {size} bytes, the whole file has {file_size}")
    return size


def parse_header(text: bytes, file_size: int) -> WeightsHeader:
    """The header of a file of this size, out of its JSON text.

    Raises NoHeader if the text is no JSON, WeightsInvalid if it is JSON but no sound header: an entry that
    describes no tensor, an unknown dtype, offsets that leave gaps, overlap, or do not fit shape or file.
    """
    with _garbage_collection_paused():
        return _parse_header(text, file_size)


def _parse_header(text: bytes, file_size: int) -> WeightsHeader:
    document = _parse_json(text)
    if not isinstance(document, dict):
        raise WeightsInvalid("the header is not a JSON object")
    tensors: dict[str, TensorInfo] = {}
    body = LENGTH_BYTES + len(text)
    has_metadata = False
    for name, entry in _pairs(document):
        if name != "__metadata__":
            tensors[name] = _tensor_info(name, entry, body)  # a later one of the same name replaces it
        elif has_metadata:
            raise WeightsInvalid("the header has __metadata__ twice")
        else:
            _judge_metadata(entry)
            has_metadata = True
    _judge_layout(tensors, body, file_size)
    return WeightsHeader(tensors)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a model of this shape needs. Linear weights lie as (in, out)."""
    D, F, V = config.embedding_dim, config.pwff_hidden_dim, config.vocab_size
    of_layer: dict[str, tuple[int, ...]] = {}
    for norm in ("norm_1", "norm_2"):
        of_layer |= {f"{norm}.gamma": (D,), f"{norm}.beta": (D,)}
    for part in ("query", "key", "value", "output"):
        of_layer |= {f"attention.{part}.weight": (D, D), f"attention.{part}.bias": (D,)}
    of_layer |= {"pwff.linear_inner.weight": (D, F), "pwff.linear_inner.bias": (F,)}
    of_layer |= {"pwff.linear_outer.weight": (F, D), "pwff.linear_outer.bias": (D,)}
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (V, D)}
    for layer in range(config.num_layers):
        shapes |= {f"encoder.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return shapes | {
        "final_norm.gamma": (D,),
        "final_norm.beta": (D,),
        "predictor.weight": (D, V),
        "predictor.bias": (V,),
    }


def findings(header: WeightsHeader, config: ModelConfig) -> list[str]:
    """Why the network would not take these tensors as weights of this shape: a sentence each, none if it would.

    Other tensors beside the needed ones are no finding: the network ignores them.
    """
    found = []
    for name, shape in expected_shapes(config).items():
        info = header.tensors.get(name)
        if info is None:
            found.append(f"tensor {name} is missing")
        elif info.shape != shape:
            found.append(f"tensor {name} has shape {_shape(info.shape)}, expected {_shape(shape)}")
        elif info.dtype not in CONVERTIBLE_DTYPES:
            found.append(f"tensor {name} has dtype {info.dtype}, expected F32 or one that converts to it")
    return found


def quoted(name: str) -> str:
    """A name out of a file, safe to print: escaped, and cut off after 80 characters."""
    return ascii(name if len(name) <= 80 else name[:80] + "...")


def _shape(shape: Sequence[int]) -> str:
    text = "[" + ", ".join(str(size) for size in shape[:8])
    return text + (", ...]" if len(shape) > 8 else "]")


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """A header of a million tensors is millions of objects, none of them garbage: looking costs half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Python's json, held to what serde_json takes


class _RepeatingObject(dict[str, Any]):
    """A JSON object in which a name stands more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else _RepeatingObject(pairs)


def _pairs(members: dict[str, Any]) -> Iterable[tuple[str, Any]] | ItemsView[str, Any]:
    return members.pairs if isinstance(members, _RepeatingObject) else members.items()


def _integer(digits: str) -> int | float:
    """Integers of 64 bits; beyond those, and for -0, a float, as serde_json has it."""
    if digits == "-0" or len(digits) > 20:
        return _float(digits)
    value = int(digits)
    return value if value <= _MAX_USIZE else float(value)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_no_constant
)

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_NO_LONE_SURROGATE = re.compile(
    r"(?:[^\\]++"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair
    r"|\\(?!u[dD][89a-fA-F]).)*+",  # any other escape
    re.DOTALL,
)


def _parse_json(text: bytes) -> object:
    try:
        decoded = text.decode("utf-8")
        document: object = _DECODER.decode(decoded)
    except RecursionError:
        raise NoHeader("its header is nested too deeply") from None
    except UnicodeDecodeError:
        raise NoHeader("its header is not UTF-8") from None
    except ValueError:
        raise NoHeader("its header is not JSON") from None
    if _SURROGATE_ESCAPE.search(decoded) and not _NO_LONE_SURROGATE.fullmatch(decoded):
        raise NoHeader("its header has half a surrogate pair, which is not JSON")
    return document


# The header's entries, as the library's Rust types take them


def _judge_metadata(entry: object) -> None:
    if entry is None:
        return
    if not isinstance(entry, dict) or not all(isinstance(value, str) for _, value in _pairs(entry)):
        raise WeightsInvalid("__metadata__ is not an object of strings")


def _tensor_info(name: str, entry: object, body: int) -> TensorInfo:
    dtype, shape, offsets = _tensor_fields(name, entry)
    if isinstance(dtype, dict) and not isinstance(dtype, _RepeatingObject) and list(dtype.values()) == [None]:
        dtype = next(iter(dtype))  # serde's other way of writing a variant: {"F32": null}
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise WeightsInvalid(f"tensor {quoted(name)} has an unknown dtype")
    if not _is_usize_list(shape):
        raise WeightsInvalid(f"the shape of tensor {quoted(name)} is not a list of sizes")
    if not _is_usize_list(offsets) or len(offsets) != 2:
        raise WeightsInvalid(f"the data_offsets of tensor {quoted(name)} are not two offsets")
    return TensorInfo(dtype, tuple(shape), body + offsets[0], body + offsets[1])


def _tensor_fields(name: str, entry: object) -> tuple[Any, Any, Any]:
    """dtype, shape and data_offsets of an entry: an object, or an array in this order."""
    if isinstance(entry, list) and len(entry) == 3:
        return entry[0], entry[1], entry[2]
    if not isinstance(entry, dict):
        raise WeightsInvalid(f"the entry of tensor {quoted(name)} describes no tensor")
    known = ("dtype", "shape", "data_offsets")
    for field in known:
        if field not in entry:
            raise WeightsInvalid(f"tensor {quoted(name)} has no {field}")
    if isinstance(entry, _RepeatingObject):
        fields = [field for field, _ in entry.pairs]
        if any(fields.count(field) > 1 for field in known):
            raise WeightsInvalid(f"tensor {quoted(name)} has a field twice")
    if len(entry) > len(known) or isinstance(entry, _RepeatingObject):
        _judge_depth([value for _, value in _pairs(entry)], depth=3)
    return entry["dtype"], entry["shape"], entry["data_offsets"]


def _judge_depth(values: list[Any], depth: int) -> None:
    """Refuse nesting that serde_json refuses; `depth` is that of containers among these values."""
    while values:
        if depth > _MAX_DEPTH and any(isinstance(value, list | dict) for value in values):
            raise NoHeader("its header is nested too deeply")
        values = list(_members(values))
        depth += 1


def _members(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        elif isinstance(value, dict):
            for _, member in _pairs(value):
                yield member


def _is_usize_list(value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int} and min(value, default=0) >= 0


def _judge_layout(tensors: dict[str, TensorInfo], body: int, file_size: int) -> None:
    """The tensors must tile the file behind the header, without gap or overlap, each of its shape's size."""
    start = body
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != start or info.end < info.begin:
            raise WeightsInvalid(
                f"tensor {quoted(name)} lies at bytes {info.begin} to {info.end}, expected to begin at {start}"
            )
        size = _num_bytes(name, info)
        if info.end - info.begin != size:
            raise WeightsInvalid(
                f"tensor {quoted(name)} has {info.end - info.begin} bytes, "
                f"expected {size} for {info.dtype} {_shape(info.shape)}"
            )
        start = info.end
    if start != file_size:
        raise WeightsInvalid(f"the file has {file_size} bytes, expected {start} from its header")


def _num_bytes(name: str, info: TensorInfo) -> int:
    num_elements = 1
    for size in info.shape:  # in this order: [0, 2^40, 2^40] is sound, [2^40, 2^40, 0] overflows
        num_elements *= size
        if num_elements > _MAX_USIZE:
            break
    bits = num_elements * DTYPE_BITS[info.dtype]
    if bits > _MAX_USIZE:
        raise WeightsInvalid(f"the shape {_shape(info.shape)} of tensor {quoted(name)} is beyond 64 bits")
    if bits % 8:
        raise WeightsInvalid(f"tensor {quoted(name)} ends within a byte")
    return bits // 8
