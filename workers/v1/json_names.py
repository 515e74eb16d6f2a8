"""JSON text checked as serde_json checks it, and where its outer names stand, without making values of the rest.

A header may have 100 MB, of which nearly all may lie in values that nobody needs. As Python objects these take sixty
times the memory. Here the text is cut into tokens and checked with numpy, a piece at a time: no token may follow
another that it cannot follow, and brackets must match. What is kept is one byte for each open bracket, and the
positions of the outer names.

Stricter than Python's json: no NaN, no half of a surrogate pair, no number beyond float64, no nesting beyond 127.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_DEPTH = 127
MAX_TOKENS_WITHOUT_COMMA = 4 * MAX_DEPTH + 2
"""A comma; an opening bracket, a name, a colon and a closing bracket for each level; and a scalar."""
PIECE_BYTES = 256 << 10
MAX_VECTOR_LENGTH = 32
"""Numbers with more characters are looked at one by one."""

Text = bytes | bytearray
Array = NDArray[np.uint8]

# The kinds of token. A name is a string that a colon follows.
SPACE, START, STRING, SCALAR, OPEN_ARRAY, OPEN_OBJECT, CLOSE_ARRAY, CLOSE_OBJECT, COLON, COMMA, NAME = range(
    11
)
INVALID = 255

_HEX = rb"[0-9a-fA-F]"
_ESCAPE = rb"\\(?:[\"\\/bfnrt]|u(?:[0-9a-cA-Ce-fE-F]H{3}|[dD][0-7]H{2}|[dD][89abAB]H{2}\\u[dD][c-fC-F]H{2}))".replace(
    b"H", _HEX
)
# Possessive repeats of single characters alone: before Python 3.11.5 those of groups match too much (gh-106052).
_ESCAPES = re.compile(rb"(?:%s){1,1000}" % _ESCAPE)
_PART_OF_STRING = re.compile(rb'(?:[^"\\\x00-\x1f]{1,65536}+|%s){0,64}' % _ESCAPE)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_AFTER_WHICH_TO_CUT = b',:[]{}" \t\r\n'


class NotJson(Exception):
    """The text is no JSON that serde_json would take."""


@dataclass(frozen=True, slots=True)
class Names:
    """Where the names of a JSON object begin, at their opening quotes, in order."""

    outer: NDArray[np.uint32]
    """The object's own."""
    inner: NDArray[np.uint32]
    """Those of the objects that are its values, as far as their first byte was asked for."""


def find_names(text: Text, inner_first_bytes: bytes, check_cancelled: Callable[[], None]) -> Names:
    """Check the text, and find its names. `check_cancelled` is called for each piece. Raises NotJson."""
    checker = _Checker(np.frombuffer(text, dtype=np.uint8), inner_first_bytes)
    _check_utf8(text, check_cancelled)
    for kinds, positions in _tokens(text):
        check_cancelled()
        checker.feed(kinds, positions)
    checker.finish()
    return Names(_joined(checker.outer), _joined(checker.inner))


def _check_utf8(text: Text, check_cancelled: Callable[[], None]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), PIECE_BYTES):
            check_cancelled()
            decoder.decode(text[start : start + PIECE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise NotJson("is not UTF-8") from None


# From text to tokens


def _tokens(text: Text) -> Iterator[tuple[Array, NDArray[np.int64]]]:
    """The kinds of the tokens and where they begin, piece by piece. No name is told from other strings yet."""
    start = 0
    while start < len(text):
        piece = text[start : start + PIECE_BYTES]
        if b"\\" in piece:
            piece = _ESCAPES.sub(lambda escapes: b"_" * len(escapes.group()), piece)
        piece = piece[: _num_whole(piece, is_last=start + len(piece) == len(text))]
        if piece:
            kinds, positions = _tokens_of_piece(np.frombuffer(piece, dtype=np.uint8))
            yield kinds, positions + start
            start += len(piece)
        else:
            kind, end = _long_token(text, start)
            yield np.array([kind], dtype=np.uint8), np.array([start])
            start = end


def _num_whole(piece: Text, *, is_last: bool) -> int:
    """How many bytes of a piece hold whole tokens only. Escapes have been taken out of it."""
    if piece.count(b'"') % 2:
        return piece.rfind(b'"')  # a string that goes on behind the piece
    if is_last:
        return len(piece)
    return 1 + max(piece.rfind(byte) for byte in _AFTER_WHICH_TO_CUT)


def _long_token(text: Text, start: int) -> tuple[int, int]:
    """The kind of a token longer than a piece, and its end."""
    if text[start : start + 1] != b'"':
        number = _NUMBER.match(text, start)
        if number is None:
            raise NotJson("is not JSON")
        _check_range(number.group())
        return SCALAR, number.end()
    end = start + 1
    while (part := _PART_OF_STRING.match(text, end)) and part.end() > end:
        end = part.end()
    if text[end : end + 1] != b'"':
        raise NotJson("is not JSON")
    return STRING, end + 1


def _tokens_of_piece(piece: Array) -> tuple[Array, NDArray[np.int64]]:
    quotes = piece == ord('"')
    is_inside = (np.cumsum(quotes, dtype=np.uint8) & 1).astype(np.bool_)  # from the opening quote on
    kinds = _KIND_OF_BYTE.take(piece)
    kinds[is_inside] = SPACE
    kinds[is_inside & (piece < 0x20)] = INVALID
    kinds[piece == ord("\\")] = INVALID  # no sound escape, or it would have been taken out
    kinds[quotes & is_inside] = STRING
    if (kinds == INVALID).any():
        raise NotJson("is not JSON")
    is_scalar = kinds == SCALAR
    begins, ends = is_scalar.copy(), is_scalar.copy()
    begins[1:] &= ~is_scalar[:-1]
    ends[:-1] &= ~is_scalar[1:]
    _check_scalars(piece, np.flatnonzero(begins), np.flatnonzero(ends) + 1)
    kinds[is_scalar & ~begins] = SPACE
    positions = np.flatnonzero(kinds)
    return kinds[positions], positions


def _check_scalars(piece: Array, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """Numbers, true, false and null: all of them a character further at a time, by the automaton below."""
    is_long = ends - begins > MAX_VECTOR_LENGTH
    for begin, end in zip(begins[is_long], ends[is_long], strict=True):
        number = piece[begin:end].tobytes()
        if not _NUMBER.fullmatch(number):
            raise NotJson("is not JSON")
        _check_range(number)
    begins, ends = begins[~is_long], ends[~is_long]
    at, states = begins, np.full(len(begins), _BEGIN, dtype=np.uint16)
    while len(at):
        states = _NEXT_STATE.take((states << 8) | piece[at])
        at = at + 1
        is_done = at == ends
        if not _IS_ACCEPTED.take(states[is_done]).all():
            raise NotJson("is not JSON")
        is_large = is_done & (states == _LARGE)
        if is_large.any():
            _check_ranges(piece, begins[is_large], ends[is_large])
        at, begins, ends, states = (part[~is_done] for part in (at, begins, ends, states))


def _check_ranges(piece: Array, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """The same for many numbers of at most MAX_VECTOR_LENGTH characters."""
    columns = np.arange(MAX_VECTOR_LENGTH)
    characters = piece[np.minimum(begins[:, None] + columns, len(piece) - 1)]
    characters[columns >= (ends - begins)[:, None]] = 0
    numbers = characters.view(f"S{MAX_VECTOR_LENGTH}").ravel()
    if not np.isfinite(numbers.astype(np.float64)).all():
        raise NotJson("has a number out of range")


def _check_range(number: bytes) -> None:
    if float(number) in (float("inf"), float("-inf")):
        raise NotJson("has a number out of range")


_KIND_OF_BYTE = np.full(256, INVALID, dtype=np.uint8)
for _bytes, _kind in (
    (b' \t\r\n"', SPACE),  # of quotes, only the opening ones are looked at
    (b"+-.0123456789eE", SCALAR),
    (b"truefalsn", SCALAR),
    (b"[", OPEN_ARRAY),
    (b"{", OPEN_OBJECT),
    (b"]", CLOSE_ARRAY),
    (b"}", CLOSE_OBJECT),
    (b":", COLON),
    (b",", COMMA),
):
    _KIND_OF_BYTE[list(_bytes)] = _kind


def _automaton() -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """For a state and a byte the next state, 0 for none; and whether a scalar may end in a state."""
    digits, next_state = "0123456789", np.zeros((32, 256), dtype=np.uint16)

    def on(state: int, characters: str, then: int) -> None:
        next_state[state, [ord(character) for character in characters]] = then

    minus, zero, integer, point, fraction, e, plus, minus_e, small_1, small_2, negative = range(3, 14)
    on(_BEGIN, "-", minus)
    for state in (_BEGIN, minus):
        on(state, "0", zero)
        on(state, digits[1:], integer)
    on(integer, digits, integer)
    for state in (zero, integer):
        on(state, ".", point)
    for state in (point, fraction):
        on(state, digits, fraction)
    for state in (zero, integer, fraction):
        on(state, "eE", e)
    on(e, "+", plus)
    on(e, "-", minus_e)
    for state, then in (
        (e, small_1),
        (plus, small_1),
        (small_1, small_2),
        (small_2, _LARGE),
        (_LARGE, _LARGE),
    ):
        on(state, digits, then)
    for state in (minus_e, negative):
        on(state, digits, negative)
    accepted = [zero, integer, fraction, small_1, small_2, negative, _LARGE]
    free = 14
    for word in ("true", "false", "null"):
        state = _BEGIN
        for character in word:
            on(state, character, free)
            state, free = free, free + 1
        accepted.append(state)
    is_accepted = np.zeros(32, dtype=np.bool_)
    is_accepted[accepted] = True
    return next_state.ravel(), is_accepted


_BEGIN = 1
_LARGE = 2
"""In an exponent of three digits and more, which may lead beyond float64."""
_NEXT_STATE, _IS_ACCEPTED = _automaton()


# Which tokens may follow one another


def _legal_pairs() -> NDArray[np.bool_]:
    """For a token and the next one, at 16 times the first plus the second."""
    legal = np.zeros((16, 16), dtype=np.bool_)
    values = [STRING, SCALAR, OPEN_ARRAY, OPEN_OBJECT]
    legal[START, values] = True
    legal[COLON, values] = True
    legal[COMMA, [*values, NAME]] = True
    legal[OPEN_ARRAY, [*values, CLOSE_ARRAY]] = True
    legal[OPEN_OBJECT, [NAME, CLOSE_OBJECT]] = True
    legal[NAME, COLON] = True
    for end_of_value in (STRING, SCALAR, CLOSE_ARRAY, CLOSE_OBJECT):
        legal[end_of_value, [COMMA, CLOSE_ARRAY, CLOSE_OBJECT]] = True
    return legal.ravel()


_IS_LEGAL = _legal_pairs()

_STEP = np.zeros(16, dtype=np.int8)
_STEP[[OPEN_ARRAY, OPEN_OBJECT]] = 1
_STEP[[CLOSE_ARRAY, CLOSE_OBJECT]] = -1


@dataclass(slots=True)
class _Checker:
    """Takes tokens in order. They are looked at up to the last comma: the rest waits for what follows."""

    text: Array
    inner_first_bytes: bytes
    outer: list[NDArray[np.uint32]] = field(default_factory=list)
    inner: list[NDArray[np.uint32]] = field(default_factory=list)
    open_is_object: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """Of the brackets that are open, outermost first."""
    last: int = START
    kinds: Array = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    positions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Of the tokens that wait."""

    def feed(self, kinds: Array, positions: NDArray[np.int64]) -> None:
        """The next tokens."""
        self.kinds = np.concatenate([self.kinds, kinds])
        self.positions = np.concatenate([self.positions, positions])
        commas = np.flatnonzero(self.kinds == COMMA)
        if len(commas):
            self._take(int(commas[-1]))
        if len(self.kinds) > MAX_TOKENS_WITHOUT_COMMA:
            raise NotJson("is nested too deeply")

    def finish(self) -> None:
        """There are no more tokens."""
        self._take(len(self.kinds))
        if self.last not in (STRING, SCALAR, CLOSE_ARRAY, CLOSE_OBJECT) or len(self.open_is_object):
            raise NotJson("is not JSON")

    def _take(self, num_tokens: int) -> None:
        kinds, self.kinds = self.kinds[:num_tokens], self.kinds[num_tokens:]
        positions, self.positions = self.positions[:num_tokens], self.positions[num_tokens:]
        if not num_tokens:
            return
        kinds[:-1][(kinds[:-1] == STRING) & (kinds[1:] == COLON)] = NAME
        before = np.concatenate([np.array([self.last], dtype=np.uint8), kinds[:-1]])
        if not _IS_LEGAL.take((before << 4) | kinds).all():
            raise NotJson("is not JSON")
        depths = np.cumsum(_STEP.take(kinds), dtype=np.int32) + len(self.open_is_object)
        if depths.max() > MAX_DEPTH:
            raise NotJson("is nested too deeply")
        self._match_brackets(kinds, depths)
        self._note_names(positions[kinds == NAME], depths[kinds == NAME])
        self.last = int(kinds[-1])

    def _match_brackets(self, kinds: Array, depths: NDArray[np.int32]) -> None:
        """Whatever lies within a container, commas and its closing bracket, must be of its type.

        Sorted by depth, and in order within a depth, each container's tokens follow its opening bracket.
        """
        is_closing = (kinds == CLOSE_ARRAY) | (kinds == CLOSE_OBJECT)
        is_opening = (kinds == OPEN_ARRAY) | (kinds == OPEN_OBJECT)
        chosen = np.flatnonzero(is_closing | is_opening | (kinds == COMMA))
        next_kinds = np.append(kinds[1:], np.uint8(SPACE))[chosen]
        types = kinds[chosen]
        is_object = (types == OPEN_OBJECT) | (types == CLOSE_OBJECT) | (next_kinds == NAME)
        is_object &= (types != OPEN_ARRAY) & (types != CLOSE_ARRAY)
        levels = depths[chosen] + is_closing[chosen]
        if len(levels) and levels.min() < 1:
            raise NotJson("is not JSON")
        num_open = len(self.open_is_object)
        is_object = np.concatenate([self.open_is_object, is_object])
        opens = np.concatenate([np.ones(num_open, dtype=np.bool_), is_opening[chosen]])
        all_levels = np.concatenate([np.arange(1, num_open + 1), levels]).astype(np.uint8)
        order = np.argsort(all_levels, kind="stable")
        is_object, opens = is_object[order], opens[order]
        if (~opens[1:] & (is_object[1:] != is_object[:-1])).any():
            raise NotJson("is not JSON")
        last_of_level = np.searchsorted(all_levels[order], np.arange(1, depths[-1] + 1), side="right") - 1
        self.open_is_object = is_object[last_of_level]

    def _note_names(self, positions: NDArray[np.int64], depths: NDArray[np.int32]) -> None:
        self.outer.append(positions[depths == 1].astype(np.uint32))
        inner = positions[depths == 2]
        is_asked_for = np.zeros(256, dtype=np.bool_)  # np.isin imports numpy.ma, which takes 0.1 s
        is_asked_for[list(self.inner_first_bytes)] = True
        self.inner.append(inner[is_asked_for.take(self.text[inner + 1])].astype(np.uint32))


def _joined(parts: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    return np.concatenate([np.zeros(0, dtype=np.uint32), *parts])
