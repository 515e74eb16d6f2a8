"""Charts as inline SVG: no library, no network. Colours and fonts come from the page's style sheet."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 420, 230
"""Of a chart's own coordinates: about a phone's width, so that text keeps its size there."""

NUM_COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 34


@dataclass(frozen=True, slots=True)
class Line:
    """One candidate's values along an axis."""

    name: str
    colour: int
    values: NDArray[np.float64]
    """As many as the chart's `x`; NaN leaves a gap."""


def line_chart(
    title: str,
    x: NDArray[np.float64],
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = False,
) -> str:
    """A figure of one line each over common `x` values; values are shown where the pointer is."""
    to_x = _scale(x[0], x[-1], _LEFT, WIDTH - _RIGHT, logarithmic=logarithmic)
    known = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    low, high = _padded(float(known.min()), float(known.max()))
    to_y = _scale(low, high, HEIGHT - _BOTTOM, _TOP)
    parts = [_y_axis(low, high, to_y), _x_axis(x, to_x, logarithmic)]
    for line in reversed(lines):  # the best on top
        parts.append(
            f'<path class="line s{line.colour}" data-c="{line.colour}" d="{_path(x, line.values, to_x, to_y)}"/>'
        )
    parts.append(_text(WIDTH / 2, HEIGHT - 4, x_label, "middle"))
    data = {
        "x": [round(float(to_x(value)), 1) for value in x],
        "labels": [f"{value:,.0f}" for value in x],
        "lines": [
            {
                "name": line.name,
                "c": line.colour,
                "v": [None if math.isnan(v) else round(float(v), 4) for v in line.values],
            }
            for line in lines
        ],
        "unit": x_label,
    }
    return _figure(title, y_label, "".join(parts), data)


def gap_chart(title: str, rows: Sequence[tuple[str, int, Sequence[float]]], x_label: str) -> str:
    """A row of dots for each candidate, one per run, and a bar at their mean: what a table hides."""
    values = [value for _, _, row in rows for value in row]
    low, high = _padded(min(values), max(values))
    height = max(HEIGHT, 26 * len(rows) + _TOP + _BOTTOM)
    row_height = (height - _TOP - _BOTTOM) / len(rows)
    to_x = _scale(low, high, _LEFT - 30, WIDTH - _RIGHT - 6)
    parts = []
    for tick in nice_ticks(low, high, 5):
        parts.append(f'<path class="grid" d="M{to_x(tick):.1f} {_TOP}V{height - _BOTTOM + 4}"/>')
        parts.append(_text(to_x(tick), height - _BOTTOM + 16, f"{tick:g}", "middle"))
    for i, (name, colour, row) in enumerate(rows):
        y, mean = round(_TOP + row_height * (i + 0.5), 1), sum(row) / len(row)
        parts.append(f'<path class="grid" d="M{_LEFT - 30} {y}H{WIDTH - _RIGHT - 6}"/>')
        parts += [
            f'<circle class="dot s{colour}" data-c="{colour}" cx="{to_x(value):.1f}" cy="{y}" r="3.5">'
            f"<title>{escape(name)}: {value:.6f}</title></circle>"
            for value in row
        ]
        parts.append(
            f'<path class="mean s{colour}" data-c="{colour}" d="M{to_x(mean):.1f} {y - 9}V{y + 9}">'
            f"<title>{escape(name)}: {mean:.6f}</title></path>"
        )
    parts.append(_text(WIDTH / 2, height - 4, x_label, "middle"))
    return _figure(title, "", "".join(parts), None, height)


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], x_label: str, mark: float) -> str:
    """A bar for each bin between two `edges`, and a line at `mark`: those left of it are in the first colour."""
    to_x = _scale(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    most = max(counts) or 1
    to_y = _scale(0.0, float(most), HEIGHT - _BOTTOM, _TOP)
    parts = [_y_axis(0.0, float(most), to_y)]
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        x, width, y = to_x(start), to_x(end) - to_x(start), to_y(float(count))
        parts.append(
            f'<rect class="s{0 if end <= mark else 1}" fill="var(--col)" x="{x:.1f}" y="{y:.1f}" '
            f'width="{max(0.5, width - 0.5):.1f}" height="{HEIGHT - _BOTTOM - y:.1f}">'
            f"<title>{start:.3f} to {end:.3f}: {count:,}</title></rect>"
        )
    for tick in nice_ticks(edges[0], edges[-1], 5):
        parts.append(_text(to_x(tick), HEIGHT - _BOTTOM + 14, f"{tick:g}", "middle"))
    if edges[0] <= mark <= edges[-1]:
        parts.append(f'<path class="cross" d="M{to_x(mark):.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
    parts.append(_text(WIDTH / 2, HEIGHT - 4, x_label, "middle"))
    return _figure(title, "", "".join(parts), None)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two others."""
    step = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(step))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= step)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _scale(
    low: float, high: float, start: float, end: float, *, logarithmic: bool = False
) -> Callable[[float], float]:
    if logarithmic:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda value: start + ((math.log(value) if logarithmic else value) - low) / span * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _y_axis(low: float, high: float, to_y: Callable[[float], float]) -> str:
    return "".join(
        f'<path class="grid" d="M{_LEFT} {to_y(tick):.1f}H{WIDTH - _RIGHT}"/>'
        + _text(_LEFT - 6, to_y(tick) + 4, f"{tick:g}", "end")
        for tick in nice_ticks(low, high, 5)
    )


def _x_axis(x: NDArray[np.float64], to_x: Callable[[float], float], logarithmic: bool) -> str:
    if logarithmic:
        ticks = [float(4**i) for i in range(6) if x[0] <= 4**i <= x[-1]]
    else:
        ticks = [tick for tick in nice_ticks(float(x[0]), float(x[-1]) + 1e-9, 5) if tick <= x[-1]]
    return "".join(_text(to_x(tick), HEIGHT - _BOTTOM + 14, f"{tick:,.0f}", "middle") for tick in ticks)


def _path(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> str:
    parts, is_pen_down = [], False
    for a, b in zip(x, y, strict=True):
        if math.isnan(b):
            is_pen_down = False
            continue
        parts.append(f"{'L' if is_pen_down else 'M'}{to_x(a):.1f} {to_y(b):.1f}")
        is_pen_down = True
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, y_label: str, content: str, data: object, height: int = HEIGHT) -> str:
    attribute = "" if data is None else f" data-chart='{escape(json.dumps(data), quote=True)}'"
    unit = f' <span class="unit">{escape(y_label)}</span>' if y_label else ""
    return (
        f"<figure{attribute}><figcaption>{escape(title)}{unit}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg></figure>'
    )
