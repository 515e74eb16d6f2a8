"""JSON text is checked as the library checks it, however it is cut into pieces, and with little memory."""

import json
import re
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.v1 import json_names
from workers.v1.json_names import NotJson, find_names

LARGE_BYTES = 4_000_000


def names(text: bytes, piece_bytes: int = json_names.PIECE_BYTES) -> tuple[list[int], list[int]] | None:
    """Where the names begin, None if the text is no JSON."""
    with patch.object(json_names, "PIECE_BYTES", piece_bytes):
        try:
            found = find_names(text, b"ds", lambda: None)
        except NotJson:
            return None
    return found.outer.tolist(), found.inner.tolist()


def is_json_for_the_library(value: bytes) -> bool:
    """Whether it takes the value where it looks at nothing but the syntax."""
    text = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":' + value + b"}}"
    try:
        safetensors.deserialize(  # type: ignore[no-untyped-call]
            len(text).to_bytes(8, "little") + text
        )
    except safetensors.SafetensorError:
        return False
    return True


values = st.recursive(
    st.sampled_from(
        ["0", "-1.5e7", "true", "null", '""', '"a\\n"', '"\\ud83d\\ude00"', "1e300", '"[{,:"', "123456789"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]")
        | st.lists(inner, max_size=3).map(
            lambda items: "{" + ", ".join(f'"s" : {item}' for item in items) + " }"
        )
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(values, st.data())
@settings(max_examples=500, deadline=None)
def test_the_library_agrees_on_values_with_bytes_changed(value: str, data: st.DataObject) -> None:
    text = bytearray(value.encode())
    for _ in range(data.draw(st.integers(0, 2))):
        changed = data.draw(st.sampled_from(b'{}[]",:\\ 0123456789.-+eEnultrfabsd\x00\x1f\xff'))
        text[data.draw(st.integers(0, len(text) - 1))] = changed
    expected = is_json_for_the_library(bytes(text))
    for piece_bytes in (8, 13, json_names.PIECE_BYTES):
        assert (names(bytes(text), piece_bytes) is not None) == expected


@given(st.lists(values, max_size=5), st.integers(8, 40))
@settings(max_examples=200, deadline=None)
def test_names_are_found_however_the_text_is_cut(items: list[str], piece_bytes: int) -> None:
    text = ("{" + ",".join(f'"name{i}":{item}' for i, item in enumerate(items)) + "}").encode()
    found = names(text, piece_bytes)
    assert found == names(text)
    assert found is not None
    assert found[0] == [text.index(f'"name{i}"'.encode()) for i in range(len(items))]


def test_inner_names_are_those_of_the_second_level_with_these_first_bytes() -> None:
    text = b'{"d":{"d":{"d":1},"x":2,"s":[{"s":3}]}}'
    assert names(text) == ([1], [6, 24])


@pytest.mark.parametrize("depth", [126, 127, 128, 1000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_nesting(depth: int, brackets: str) -> None:
    opening, closing = ("[", "]") if brackets == "[]" else ('{"":', "}")
    text = (opening * depth + "0" + closing * depth).encode()
    assert (names(text) is not None) == (depth <= 127)
    assert (names(text, 64) is not None) == (depth <= 127)


@pytest.mark.parametrize(
    "text", ["", " ", "1 2", "[]]", "[", "{}{}", "1,2", '"a":1', "[1,]", "{,}", "[1}", '{"a":1]', "nul"]
)
def test_no_json(text: str) -> None:
    assert names(text.encode()) is None


@pytest.mark.parametrize(
    "number", ["1e308", "1e309", "-1e309", "9" * 308, "9" * 309, "0e999", "1e-999", "1.8e308"]
)
def test_range_of_numbers(number: str) -> None:
    is_in_range = abs(json.loads(number, parse_int=float)) != float("inf")
    assert (names(f"[{number}]".encode()) is not None) == is_in_range


HOSTILE: dict[str, bytes] = {
    "members": b'"":0',
    "arrays": b"[]",
    "nested": b"[[[[[[0]]]]]]",
    "objects": b'{"":{"":[]}}',
    "deep": b"[" * 100 + b"]" * 100,
    "strings": b'"\\n\\u0041x"',
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_memory_stays_small_and_other_threads_run(kind: str) -> None:
    item = HOSTILE[kind]
    items = b",".join([item] * (LARGE_BYTES // (len(item) + 1)))
    text = b'[{"a":' + (b"{" + items + b"}" if kind == "members" else b"[" + items + b"]") + b"}]"
    longest_wait, stop = 0.0, threading.Event()

    def beat() -> None:
        nonlocal longest_wait
        while not stop.is_set():
            started = time.perf_counter()
            time.sleep(0.001)
            longest_wait = max(longest_wait, time.perf_counter() - started)

    thread = threading.Thread(target=beat)
    thread.start()
    tracemalloc.start()
    try:
        calls: list[Any] = []
        find_names(text, b"ds", lambda: calls.append(None))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        stop.set()
        thread.join()
    assert peak < 10 * LARGE_BYTES  # of which all but one byte in ten is one piece's, however long the text
    assert longest_wait < 5
    assert len(calls) > LARGE_BYTES // json_names.PIECE_BYTES


def test_no_group_is_repeated_possessively() -> None:
    """Before Python 3.11.5 such a repeat matches too much where its group fails midway: `1.` was a number."""
    found = [
        line.strip()
        for path in Path(json_names.__file__).parent.glob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\)(?:[*+?]|\{[0-9,]*\})\+", line)
    ]
    assert len(found) == 1, found  # STRING of header_entries, whose group never fails midway
    assert 'replace(b"STRING"' in found[0]
