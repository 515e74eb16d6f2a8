"""Our verdict on a header against the safetensors library's, on headers made up and on headers written down."""

import json
import struct
import tracemalloc
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.v1.config import ModelConfig
from workers.v1.errors import WeightsInvalid
from workers.v1.header_entries import DTYPE_BITS
from workers.v1.weights_header import (
    MAX_HEADER_BYTES,
    NoHeader,
    expected_shapes,
    header_size,
    parse_header,
)

BODY = bytes(8)


def our_places(text: bytes, body: bytes = BODY) -> dict[str, tuple[str, list[int]]] | None:
    """The tensors we see, None if we refuse the file."""
    file_size = 8 + len(text) + len(body)
    try:
        assert header_size(struct.pack("<Q", len(text)), file_size) == len(text)
        header = parse_header(text, file_size)
    except (NoHeader, WeightsInvalid):
        return None
    return {name: (place.dtype, list(place.shape)) for name, place in header.tensors.items()}


def library_places(text: bytes, body: bytes = BODY) -> dict[str, tuple[str, list[int]]] | None:
    """The tensors the library sees, None if it refuses the file."""
    try:
        tensors = safetensors.deserialize(  # type: ignore[no-untyped-call]
            struct.pack("<Q", len(text)) + text + body
        )
    except safetensors.SafetensorError:
        return None
    return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in tensors}


GOOD = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'
TENSOR = '"a":{' + GOOD + "}"


def nested(depth: int) -> str:
    """A header with this many containers within one another."""
    return '{"a":{' + GOOD + ',"x":' + "[" * (depth - 2) + "]" * (depth - 2) + "}}"


WRITTEN: dict[str, str | bytes] = {
    "plain": "{" + TENSOR + "}",
    "space-first": " \n\t{" + TENSOR + "}",
    "space-last": "{" + TENSOR + "} \r\n\t",
    "nul-last": "{" + TENSOR + "}\0",
    "more-last": "{" + TENSOR + "}{}",
    "byte-order-mark": "\ufeff{" + TENSOR + "}",
    "vertical-tab": "{\x0b" + TENSOR + "}",
    "no-break-space": "{\xa0" + TENSOR + "}",
    "utf-16": ("{" + TENSOR + "}").encode("utf-16"),
    "invalid-utf-8": b'{"\xff":{' + GOOD.encode() + b"}}",
    "surrogate-in-utf-8": b'{"\xed\xa0\x80":{' + GOOD.encode() + b"}}",
    "array": "[]",
    "null": "null",
    "nothing": "",
    "no-tensor": "{}",
    "entry-array": '{"a":["F32",[2],[0,8]]}',
    "entry-array-of-4": '{"a":["F32",[2],[0,8],1]}',
    "entry-array-of-2": '{"a":["F32",[2]]}',
    "entry-number": '{"a":1}',
    "entry-null": '{"a":null}',
    "variant-object": '{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}',
    "variant-object-filled": '{"a":{"dtype":{"F32":{}},"shape":[2],"data_offsets":[0,8]}}',
    "variant-object-of-2": '{"a":{"dtype":{"F32":null,"F16":null},"shape":[2],"data_offsets":[0,8]}}',
    "variant-object-twice": '{"a":{"dtype":{"F32":null,"F32":null},"shape":[2],"data_offsets":[0,8]}}',
    "dtype-lower": '{"a":{"dtype":"f32","shape":[2],"data_offsets":[0,8]}}',
    "dtype-number": '{"a":{"dtype":0,"shape":[2],"data_offsets":[0,8]}}',
    "shape-float": '{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
    "shape-exponent": '{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}',
    "shape-bool": '{"a":{"dtype":"U64","shape":[true],"data_offsets":[0,8]}}',
    "shape-negative": '{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
    "shape-leading-zero": '{"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}}',
    "shape-text": '{"a":{"dtype":"F32","shape":"2","data_offsets":[0,8]}}',
    "shape-2-to-64": '{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}}',
    "shape-overflow-after-zero": '{"b":{"dtype":"F32","shape":[0,1099511627776,1099511627776],'
    '"data_offsets":[8,8]},' + TENSOR + "}",
    "shape-overflow-before-zero": '{"b":{"dtype":"F32","shape":[1099511627776,1099511627776,0],'
    '"data_offsets":[8,8]},' + TENSOR + "}",
    "bits-overflow": '{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,8]}}',
    "offsets-minus-zero": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}',
    "offsets-of-3": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}',
    "offsets-reversed": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
    "offsets-huge": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}}',
    "field-missing": '{"a":{"dtype":"F32","shape":[2]}}',
    "field-twice": '{"a":{"dtype":"F32",' + GOOD + "}}",
    "field-escaped": '{"a":{"dtyp\\u0065":"F32","shape":[2],"data_offsets":[0,8]}}',
    "field-unknown": '{"a":{' + GOOD + ',"x":{"y":[1,null,true,-5,1e300]}}}',
    "field-unknown-twice": '{"a":{"x":1,"x":2,' + GOOD + "}}",
    "name-twice": "{" + TENSOR + "," + TENSOR + "}",
    "name-twice-first-is-none": '{"a":3,' + TENSOR + "}",
    "name-twice-first-lies-elsewhere": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[50,90]},'
    + TENSOR
    + "}",
    "nan": '{"a":{' + GOOD + ',"x":NaN}}',
    "infinity": '{"a":{' + GOOD + ',"x":-Infinity}}',
    "number-too-large": '{"a":{' + GOOD + ',"x":1e400}}',
    "number-of-400-digits": '{"a":{' + GOOD + ',"x":' + "9" * 400 + "}}",
    "number-of-100-digits": '{"a":{' + GOOD + ',"x":-' + "9" * 100 + "}}",
    "number-of-5000-digits": '{"a":{' + GOOD + ',"x":0.' + "9" * 5000 + "}}",
    "number-tiny": '{"a":{' + GOOD + ',"x":1e-99999999999}}',
    "zero-with-exponent": '{"a":{' + GOOD + ',"x":0e99999999999}}',
    "nested-127": nested(127),
    "nested-128": nested(128),
    "nested-100000": nested(100_000),
    "metadata": '{"__metadata__":{"a":"1"},' + TENSOR + "}",
    "metadata-null": '{"__metadata__":null,' + TENSOR + "}",
    "metadata-number": '{"__metadata__":{"a":1},' + TENSOR + "}",
    "metadata-array": '{"__metadata__":[],' + TENSOR + "}",
    "metadata-twice": '{"__metadata__":{},"__metadata__":{},' + TENSOR + "}",
    "metadata-name-twice": '{"__metadata__":{"a":"1","a":"2"},' + TENSOR + "}",
    "metadata-name-twice-first-number": '{"__metadata__":{"a":1,"a":"2"},' + TENSOR + "}",
    "metadata-escaped": '{"__meta\\u0064ata__":{"a":"1"},' + TENSOR + "}",
    "text-nul": '{"__metadata__":{"a":"\\u0000"},' + TENSOR + "}",
    "text-control": '{"__metadata__":{"a":"\x01"},' + TENSOR + "}",
    "text-delete": '{"__metadata__":{"a":"\x7f"},' + TENSOR + "}",
    "text-bad-escape": '{"__metadata__":{"a":"\\x41"},' + TENSOR + "}",
    "text-bad-hex": '{"__metadata__":{"a":"\\u+041"},' + TENSOR + "}",
    "surrogate-pair": '{"__metadata__":{"a":"\\ud83d\\uDE00"},' + TENSOR + "}",
    "surrogate-high": '{"__metadata__":{"a":"\\ud83d"},' + TENSOR + "}",
    "surrogate-low": '{"a":{' + GOOD + ',"\\udc00":1}}',
    "surrogate-high-high-low": '{"__metadata__":{"a":"\\ud83d\\ud83d\\ude00"},' + TENSOR + "}",
    "surrogate-in-replaced-value": '{"__metadata__":{"a":"\\ud83d","a":""},' + TENSOR + "}",
    "surrogate-behind-backslash": '{"__metadata__":{"a":"\\\\ud83d"},' + TENSOR + "}",
    "surrogate-behind-two-backslashes": '{"__metadata__":{"a":"\\\\\\ud83d"},' + TENSOR + "}",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_headers(name: str) -> None:
    text = WRITTEN[name]
    text = text if isinstance(text, bytes) else text.encode()
    assert our_places(text) == library_places(text)


@pytest.mark.parametrize("dtype", [*DTYPE_BITS, "F8_E4M3FN", "I4", "C128", "U1"])
@pytest.mark.parametrize("num_elements", [0, 1, 2, 3, 4, 8, 15, 16])
def test_dtypes(dtype: str, num_elements: int) -> None:
    size = num_elements * DTYPE_BITS.get(dtype, 8) // 8
    entry = {"dtype": dtype, "shape": [num_elements], "data_offsets": [0, size]}
    text = json.dumps({"a": entry}).encode()
    assert our_places(text, bytes(size)) == library_places(text, bytes(size))


# Headers near the border of what is sound: tensors that tile the body, then a few things changed.

sizes = st.lists(st.integers(0, 3), max_size=3)
odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**65)
    | st.sampled_from([0.5, 2.0, 1e300, "F32", "x", "\ud83d", [0, 8], [2], "é\n"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=4,
)


@st.composite
def tiled(draw: st.DrawFn) -> tuple[list[tuple[str, Any]], int]:
    """The entries of a sound header, and the size of its body."""
    entries: list[tuple[str, Any]] = []
    offset = 0
    for name in draw(st.lists(st.text(max_size=4) | st.sampled_from(["a", "b"]), max_size=4)):
        dtype, shape = draw(st.sampled_from(sorted(DTYPE_BITS))), draw(sizes)
        bits = DTYPE_BITS[dtype]
        for size in shape:
            bits *= size
        entries.append((name, {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bits // 8]}))
        offset += bits // 8
    if draw(st.booleans()):
        entries.append(("__metadata__", draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3)))))
    return draw(st.permutations(entries)), offset


def dump(entries: list[tuple[str, Any]]) -> bytes:
    """As JSON, repeating what is repeated; lone surrogates come out as escapes."""
    return (
        "{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries) + "}"
    ).encode()


@pytest.mark.slow
@given(tiled(), st.integers(-1, 1))
@settings(max_examples=300, deadline=None)
def test_tiled_headers(header: tuple[list[tuple[str, Any]], int], more: int) -> None:
    entries, size = header
    body = bytes(max(0, size + more))
    assert our_places(dump(entries), body) == library_places(dump(entries), body)


@pytest.mark.slow
@given(tiled(), st.data())
@settings(max_examples=500, deadline=None)
def test_headers_with_something_changed(
    header: tuple[list[tuple[str, Any]], int], data: st.DataObject
) -> None:
    entries, size = header
    if entries:
        index = data.draw(st.integers(0, len(entries) - 1))
        name, entry = entries[index]
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "other", None]))
        changed = data.draw(odd_values) if field is None else {**entry, field: data.draw(odd_values)}
        entries[index] = (name, changed)
    text, body = dump(entries), bytes(size)
    assert our_places(text, body) == library_places(text, body)


@given(tiled(), st.data())
@settings(max_examples=300, deadline=None)
def test_headers_with_a_byte_changed(header: tuple[list[tuple[str, Any]], int], data: st.DataObject) -> None:
    entries, size = header
    text = bytearray(dump(entries))
    for _ in range(data.draw(st.integers(1, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(
            st.sampled_from(b'{}[]",:\\ 0123456789.-+eEnulltrfabF\x00\x1f\xff')
        )
    assert our_places(bytes(text), bytes(size)) == library_places(bytes(text), bytes(size))


@given(odd_values)
@settings(max_examples=100, deadline=None)
def test_any_json(value: Any) -> None:
    text = json.dumps(value).encode()
    assert our_places(text, b"") == library_places(text, b"")


def test_header_length() -> None:
    with pytest.raises(NoHeader):
        header_size(struct.pack("<Q", MAX_HEADER_BYTES + 1), 2**40)
    assert header_size(struct.pack("<Q", MAX_HEADER_BYTES), 2**40) == MAX_HEADER_BYTES
    with pytest.raises(NoHeader):
        header_size(struct.pack("<Q", 100), 107)
    assert header_size(struct.pack("<Q", 100), 108) == 100


def test_a_full_model_has_1_2_billion_parameters() -> None:
    num_parameters = 0
    for shape in expected_shapes(ModelConfig()).values():
        size = 1
        for side in shape:
            size *= side
        num_parameters += size
    assert num_parameters == 1_209_684_232


def test_many_tensors_take_moderate_time_and_memory() -> None:
    entry = ':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ("{" + ",".join(f'"{i}"{entry}' for i in range(20_000)) + "}").encode()
    tracemalloc.start()
    header = parse_header(text, 8 + len(text))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(header.tensors) == 20_000
    assert peak < 40 * len(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "filling", "end"),
    [
        (b'{"__metadata__":{"a":"', b"x", b'"}}'),
        (b'{"__metadata__":{"a":"', b"\\\\", b"\\ud83d\\ude00" + b'"}}'),
        (b'{"x":', b"[", b""),
        (b'{"x":', b"9", b"}"),
        (b'{"x":0.', b"3", b"}"),
        (b"{", b" ", b"}"),
    ],
    ids=["metadata", "backslashes", "brackets", "digits", "decimals", "spaces"],
)
def test_headers_of_99_million_bytes_are_judged_as_the_library_judges_them(
    start: bytes, filling: bytes, end: bytes
) -> None:
    text = start + filling * (99_000_000 // len(filling)) + end
    assert our_places(text, b"") == library_places(text, b"")
