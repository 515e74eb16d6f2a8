"""Judging a weights file by its header, before a byte of its body is touched. Needs no torch.

A safetensors file is 8 bytes (the header's length, little-endian), the header (JSON), and the tensors.
The network reads it with the safetensors crate, that is with serde_json, then looks for the tensors it
needs. The verdict here is the same one: as strict as serde_json (see `json_names`), and as lenient where one
would not expect it (a tensor's entry may be an array; a name may stand twice, and the last one counts).
The tests hold it against the library on generated headers. The library itself takes up to 70 times a header's size
in memory and keeps other threads waiting; a reader in a service may do neither.

Names out of a file are hostile text: they are shortened and escaped in every message.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .config import ModelConfig
from .errors import DecryptionFailed, WeightsInvalid
from .header_entries import LENGTH_BYTES, HeaderEntries, TensorInfo, quoted
from .json_names import NotJson, Text
from .tensor_table import ENDS_WITHIN_BYTE, SIZE_OVERFLOWS, TensorTable

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer ones."""


CONVERTIBLE_DTYPES = frozenset(
    ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U8", "BOOL"]
)
"""What the network converts to float32 where it needs a tensor; it refuses U16 and the small floats."""

_MAX_FINDINGS = 5

Read = Callable[[int, int], Text]
"""(offset, size) -> that many bytes of the file, decrypted."""


class NoHeader(Exception):
    """The bytes hold no safetensors header at all: what a wrong decryption key looks like."""


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """A header that is in order in itself. Whether it has the tensors of a model is for `findings`."""

    tensors: TensorTable


def read_header(
    read: Read,
    file_size: int,
    config: ModelConfig,
    *,
    encrypted: bool,
    check_cancelled: Callable[[], None] = lambda: None,
) -> WeightsHeader:
    """The header of a file the network accepts as weights of this shape, or the verdict on it.

    `read` gives decrypted bytes; it is asked for the first 8, then for the header. `encrypted` says
    whether they come out of a decryption: then bytes that make no header mean that the key is wrong.
    `check_cancelled` is called often: what it raises ends the reading there.

    Raises WeightsInvalid or DecryptionFailed.
    """
    if file_size < LENGTH_BYTES:
        raise WeightsInvalid(f"the file has {file_size} bytes: too few for a safetensors header")
    try:
        size = header_size(read(0, LENGTH_BYTES), file_size)
        header = parse_header(read(LENGTH_BYTES, size), file_size, check_cancelled)
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


def header_size(first_bytes: Text, file_size: int) -> int:
    """The length of the header, out of the first 8 bytes of a file. Raises NoHeader if it cannot be one."""
    if len(first_bytes) < LENGTH_BYTES:
        raise NoHeader(f"the file has {file_size} bytes: too few for a header")
    size = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if size > MAX_HEADER_BYTES:
        raise NoHeader(f"its header would have {size} bytes, more than the {MAX_HEADER_BYTES} allowed")
    if LENGTH_BYTES + size > file_size:
        raise NoHeader(f"its header would have {size} bytes, the whole file has {file_size}")
    return size


def parse_header(
    text: Text, file_size: int, check_cancelled: Callable[[], None] = lambda: None
) -> WeightsHeader:
    """The header of a file of this size, out of its JSON text.

    Raises NoHeader if the text is no JSON, WeightsInvalid if it is JSON but no sound header: an entry that
    describes no tensor, an unknown dtype, offsets that leave gaps, overlap, or do not fit shape or file.
    """
    try:
        entries = HeaderEntries(text, check_cancelled)
    except NotJson as error:
        raise NoHeader(f"its header {error}") from None
    tensors = TensorTable(entries)
    _judge_layout(tensors, LENGTH_BYTES + len(text), file_size)
    return WeightsHeader(tensors)


def declared_size(text: Text) -> int | None:
    """The size that a file with this header has, wherever its tensors lie; None where it lists no tensors."""
    try:
        ends = TensorTable(HeaderEntries(text, lambda: None)).ends
    except (NotJson, WeightsInvalid):
        return None
    return LENGTH_BYTES + len(text) + int(ends.max(initial=0))


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


def _shape(shape: Sequence[int]) -> str:
    text = "[" + ", ".join(str(size) for size in shape[:8])
    return text + (", ...]" if len(shape) > 8 else "]")


def _judge_layout(tensors: TensorTable, body: int, file_size: int) -> None:
    """The tensors must tile the file behind the header, without gap or overlap, each of its shape's size."""
    order = tensors.in_order_of_offsets()
    begins, ends, sizes = tensors.begins[order], tensors.ends[order], tensors.sizes[order]
    expected_begins = np.concatenate([np.zeros(1, dtype=np.uint64), ends])
    is_wrong = (begins != expected_begins[:-1]) | (ends < begins) | (ends - begins != sizes)
    if is_wrong.any():
        first = int(np.argmax(is_wrong))
        _refuse_place(*tensors.item_at(order[first]), body + int(expected_begins[first]), int(sizes[first]))
    end = body + int(expected_begins[-1])
    if end != file_size:
        raise WeightsInvalid(f"the file has {file_size} bytes, expected {end} from its header")


def _refuse_place(name: str, info: TensorInfo, expected_begin: int, expected_size: int) -> NoReturn:
    if info.begin != expected_begin or info.end < info.begin:
        raise WeightsInvalid(
            f"tensor {quoted(name)} lies at bytes {info.begin} to {info.end}, expected to begin at {expected_begin}"
        )
    if expected_size == SIZE_OVERFLOWS:
        raise WeightsInvalid(f"the shape {_shape(info.shape)} of tensor {quoted(name)} is beyond 64 bits")
    if expected_size == ENDS_WITHIN_BYTE:
        raise WeightsInvalid(f"tensor {quoted(name)} ends within a byte")
    raise WeightsInvalid(
        f"tensor {quoted(name)} has {info.end - info.begin} bytes, "
        f"expected {expected_size} for {info.dtype} {_shape(info.shape)}"
    )
