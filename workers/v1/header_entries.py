"""The entries of a safetensors header, read from its text one by one, as the library's Rust types take them.

Names out of a file are hostile text: they are shortened and escaped in every message.
"""

import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from .errors import WeightsInvalid
from .json_names import Text, find_names

LENGTH_BYTES = 8
"""What stands before the header: its length."""

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Every dtype the safetensors library (0.8) knows; any other name spoils the whole file."""

MAX_SIZE = 2**64 - 1
"""The largest size and offset."""

MAX_SHAPE_SHOWN = 9
"""Sizes of a shape that are kept: more than a tensor of a model has."""

_FIELDS = (b"dtype", b"shape", b"data_offsets")
_METADATA_NAME = b"__metadata__"
_MAX_WRITTEN_BYTES = 6 * len(_METADATA_NAME) + 2
"""Of the names that are looked for, when every character of them is an escape."""

_ENTRIES_AT_ONCE = 1000
_SIZES_AT_ONCE_BYTES = 64 << 10


def _pattern(text: bytes) -> re.Pattern[bytes]:
    """A pattern for text that is known to be JSON, in which STRING and SIZE stand for these, and _ for white space.

    No other group is repeated possessively: before Python 3.11.5 such a repeat matches too much where its group fails
    midway (gh-106052), which that of STRING never does in JSON.
    """
    text = text.replace(b"_", rb"[ \t\r\n]*+")
    text = text.replace(b"STRING", rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"').replace(b"SIZE", rb"([0-9]{1,20}+)")
    return re.compile(text, re.DOTALL)


_SPACE = _pattern(rb"_")
_OPENING = _pattern(rb"_\{_")
_NAME = _pattern(rb"(STRING)_:_")
_DTYPE = _pattern(rb"(?:(STRING)|\{_(STRING)_:_null_\})_")  # serde takes {"F32": null} as well
_SHAPE = _pattern(rb"\[([0-9, \t\r\n]*+)\]_")
_OFFSETS = _pattern(rb"\[_SIZE_,_SIZE_\]_")
_USUAL_ENTRY = _pattern(
    rb'\{_"dtype"_:_"([A-Z0-9]++(?:\x5f[A-Z0-9]++){0,8})"_,_"shape"_:_\[([0-9, \t\r\n]{0,200}+)\]_,_'
    rb'"data\x5foffsets"_:_\[_SIZE_,_SIZE_\]_\}'
)
_SOME_METADATA = _pattern(rb"(?:STRING_:_STRING_(?:,_|(?=\}))){0,1000}")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header has it; begin and end are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    """Its first MAX_SHAPE_SHOWN sizes."""
    begin: int
    end: int


class Entry(NamedTuple):
    """What stands behind a name."""

    dtype: str
    shape: tuple[int, ...]
    """Its first MAX_SHAPE_SHOWN sizes."""
    num_elements: int
    """More than MAX_SIZE when the product of the sizes, taken in order, ever is."""
    begin: int
    end: int
    """Both counted from the end of the header."""


class HeaderEntries:
    """The text of a header, which is checked to be a JSON object. Positions are those of names in it."""

    def __init__(self, text: Text, check_cancelled: Callable[[], None]) -> None:
        """Raises NotJson, or WeightsInvalid when it is JSON and no object."""
        names = find_names(text, bytes({field[0] for field in _FIELDS} | set(b"\\")), check_cancelled)
        if not _OPENING.match(text):
            raise WeightsInvalid("the header is not a JSON object")
        self._text = text
        self._checkpoint = check_cancelled
        self._outer, self._inner = names.outer.data, names.inner.data

    def tensors(self) -> Iterator[tuple[int, bytes, Entry]]:
        """Position, name and entry of every tensor, in order. Raises WeightsInvalid, for `__metadata__` too."""
        has_metadata = False
        for start in range(0, len(self._outer), _ENTRIES_AT_ONCE):
            self._checkpoint()
            for position in self._outer[start : start + _ENTRIES_AT_ONCE]:
                match = self._match(_NAME, position)
                name = _decoded(match[1])
                if name != _METADATA_NAME:
                    yield position, name, self._entry(position, match.end())
                elif has_metadata:
                    raise WeightsInvalid("the header has __metadata__ twice")
                else:
                    self._judge_metadata(match.end())
                    has_metadata = True

    def name(self, position: int) -> bytes:
        """In UTF-8."""
        return _decoded(self._match(_NAME, position)[1])

    def entry(self, position: int) -> Entry:
        """What stands behind a tensor's name. Raises WeightsInvalid when that describes no tensor."""
        return self._entry(position, self._match(_NAME, position).end())

    def _entry(self, position: int, start: int) -> Entry:
        usual = _USUAL_ENTRY.match(self._text, start)
        if usual is not None:
            dtype, sizes, begin, end = usual[1].decode(), _sizes(usual[2]), int(usual[3]), int(usual[4])
            if dtype in DTYPE_BITS and max(begin, end, *sizes) <= MAX_SIZE:
                return Entry(dtype, tuple(sizes[:MAX_SHAPE_SHOWN]), _times(1, sizes), begin, end)
        if self._text[start : start + 1] == b"{":
            return self._entry_of_object(position)
        return self._entry_of_array(position, start)

    def info(self, position: int) -> TensorInfo:
        """The same with offsets in the file."""
        entry, body = self.entry(position), LENGTH_BYTES + len(self._text)
        return TensorInfo(entry.dtype, entry.shape, body + entry.begin, body + entry.end)

    def _entry_of_object(self, position: int) -> Entry:
        values: dict[bytes, int] = {}
        next_entry = bisect_left(self._outer, position + 1)
        end = self._outer[next_entry] if next_entry < len(self._outer) else len(self._text)
        for index in range(bisect_left(self._inner, position), bisect_left(self._inner, end)):
            field = self._match(_NAME, self._inner[index])
            name = _decoded(field[1]) if len(field[1]) <= _MAX_WRITTEN_BYTES else b""
            if name in values:
                raise WeightsInvalid(f"tensor {self._quoted(position)} has a field twice")
            if name in _FIELDS:
                values[name] = field.end()
        for name in _FIELDS:
            if name not in values:
                raise WeightsInvalid(f"tensor {self._quoted(position)} has no {name.decode()}")
        dtype, _ = self._dtype(position, values[b"dtype"])
        shape, num_elements, _ = self._shape(position, values[b"shape"])
        begin, end, _ = self._offsets(position, values[b"data_offsets"])
        return Entry(dtype, shape, num_elements, begin, end)

    def _entry_of_array(self, position: int, start: int) -> Entry:
        """serde takes an array of the fields in place of an object."""
        dtype, at = self._dtype(position, self._behind(b"[", position, start))
        shape, num_elements, at = self._shape(position, self._behind(b",", position, at))
        begin, end, at = self._offsets(position, self._behind(b",", position, at))
        self._behind(b"]", position, at)
        return Entry(dtype, shape, num_elements, begin, end)

    def _behind(self, byte: bytes, position: int, at: int) -> int:
        if self._text[at : at + 1] != byte:
            raise WeightsInvalid(f"the entry of tensor {self._quoted(position)} describes no tensor")
        return self._match(_SPACE, at + 1).end()

    # Of the tensor whose name is at `position`, the field at `at`, and the end of it

    def _dtype(self, position: int, at: int) -> tuple[str, int]:
        match = _DTYPE.match(self._text, at)
        written = (match[1] or match[2]) if match else b""
        dtype = _decoded(written).decode() if match and len(written) <= _MAX_WRITTEN_BYTES else ""
        if match is None or dtype not in DTYPE_BITS:
            raise WeightsInvalid(f"tensor {self._quoted(position)} has an unknown dtype")
        return dtype, match.end()

    def _shape(self, position: int, at: int) -> tuple[tuple[int, ...], int, int]:
        """The shape, and its number of elements. It may have millions of sizes."""
        match = _SHAPE.match(self._text, at)
        if match is None:
            self._refuse_shape(position)
        shape: list[int] = []
        num_elements = 1
        start, end = match.span(1)
        while start < end:
            self._checkpoint()
            cut = self._text.find(b",", min(start + _SIZES_AT_ONCE_BYTES, end), end)
            cut = end if cut < 0 else cut
            sizes = _sizes(self._text[start:cut])
            if max(sizes, default=0) > MAX_SIZE:
                self._refuse_shape(position)
            shape = (shape + sizes)[:MAX_SHAPE_SHOWN]
            num_elements = _times(num_elements, sizes)
            start = cut + 1
        return tuple(shape), num_elements, match.end()

    def _refuse_shape(self, position: int) -> NoReturn:
        raise WeightsInvalid(f"the shape of tensor {self._quoted(position)} is not a list of sizes")

    def _offsets(self, position: int, at: int) -> tuple[int, int, int]:
        match = _OFFSETS.match(self._text, at)
        if match is None or max(int(match[1]), int(match[2])) > MAX_SIZE:
            raise WeightsInvalid(f"the data_offsets of tensor {self._quoted(position)} are not two offsets")
        return int(match[1]), int(match[2]), match.end()

    def _judge_metadata(self, at: int) -> None:
        """Raises WeightsInvalid unless it is null or an object of strings."""
        if self._text[at : at + 4] == b"null":
            return
        if opening := _OPENING.match(self._text, at):
            at = opening.end()
            while (some := self._match(_SOME_METADATA, at)).end() > at:
                self._checkpoint()
                at = some.end()
            if self._text[at : at + 1] == b"}":
                return
        raise WeightsInvalid("__metadata__ is not an object of strings")

    def _match(self, pattern: re.Pattern[bytes], at: int) -> re.Match[bytes]:
        """What stands there for certain, the text being JSON."""
        match = pattern.match(self._text, at)
        assert match is not None
        return match

    def _quoted(self, position: int) -> str:
        return quoted(self.name(position).decode())


def quoted(name: str) -> str:
    """A name out of a file, safe to print: escaped, and cut off after 80 characters."""
    return ascii(name if len(name) <= 80 else name[:80] + "...")


def _decoded(string: bytes) -> bytes:
    """A string as it is written, quotes and all, in UTF-8."""
    return str(json.loads(string)).encode() if b"\\" in string else string[1:-1]


def _sizes(text: Text) -> list[int]:
    """Sizes that commas separate."""
    try:
        return list(map(int, text.split(b","))) if text.strip() else []
    except ValueError:  # thousands of digits
        return [MAX_SIZE + 1]


def _times(num_elements: int, sizes: list[int]) -> int:
    """The product of all, in order: zero stays zero, and what is beyond MAX_SIZE stays so.

    For the library [0, 2^40, 2^40] is sound, and [2^40, 2^40, 0] is not.
    """
    if num_elements == 0 or num_elements > MAX_SIZE:
        return num_elements
    if 0 not in sizes:
        return min(num_elements * math.prod(sizes), MAX_SIZE + 1)
    product = num_elements * math.prod(sizes[: sizes.index(0)])
    return 0 if product <= MAX_SIZE else MAX_SIZE + 1
