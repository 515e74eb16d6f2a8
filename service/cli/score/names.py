"""Names of candidates for narrow places, cut so that they can still be told apart."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from service.cli.printable import printable

_CUT = "…"


def distinct_names(names: Sequence[str], width: int) -> list[str]:
    """Each name printable, in at most `width` characters where that can be; two that differ still do.

    What all have in common, at the beginning and the end, goes first; then the middle.
    """
    whole = [printable(name) for name in names]
    if all(len(name) <= width for name in whole):
        return whole
    start, end = _common(whole)
    short = [_shortened(name, start, end, width) for name in whole]
    seen = Counter(dict(zip(whole, short, strict=True)).values())
    return [
        text if seen[text] == 1 else f"{_middle_cut(text, width - 4)} #{i + 1}"
        for i, text in enumerate(short)
    ]


def _common(names: Sequence[str]) -> tuple[int, int]:
    """How many characters all names share at the beginning, and at the end after that."""
    different = set(names)
    if len(different) < 2:
        return 0, 0
    start = _num_shared(different)
    rest = min(map(len, different)) - start
    end = _num_shared(name[::-1] for name in different)
    return start, min(end, rest)


def _num_shared(names: Iterable[str]) -> int:
    """How many characters all names begin with."""
    same = itertools.takewhile(lambda chars: len(set(chars)) == 1, zip(*names, strict=False))
    return sum(1 for _ in same)


def _shortened(name: str, start: int, end: int, width: int) -> str:
    if len(name) <= width:
        return name
    differing = name[start : len(name) - end]
    room = width - len(differing) - 2 * len(_CUT)
    if room < 0:
        return _middle_cut(differing, width)
    before = min(start, room - min(end, room // 2))
    after = min(end, room - before)
    head = name[:start] if before == start else _CUT + name[start - before : start]
    tail = name[len(name) - end :] if after == end else name[len(name) - end : len(name) - end + after] + _CUT
    return head + differing + tail


def _middle_cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + _CUT + text[len(text) - (width - 1 - head) :]
