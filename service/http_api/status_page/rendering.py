"""From values to HTML: the templates, and how numbers, times and bars are written in them."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_FAULTS = {
    "client": "the client",
    "data_submitter": "the data's submitter",
    "model_owner": "the model's owner",
    "service": "this service",
}

CHART_WIDTH, CHART_HEIGHT = 60, 24
"""Of every chart, in the units of its viewBox; a minute is one unit wide."""


def page(template: str, **values: Any) -> str:
    """A whole page, or one panel, as HTML; everything in it is escaped."""
    return _environment.get_template(template).render(values)


# -- filters -----------------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """`0 ms`, `340 ms`, `3.4 s`, `34 s`, `12 min`, `2 h 05 min`, `4 d`; a dash for None. status.js writes the same."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return age(seconds)


def age(seconds: float) -> str:
    """Whole seconds, minutes, hours or days."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d"


def size(num_bytes: float | None) -> str:
    """`4.84 GB`, in decimal units."""
    if num_bytes is None:
        return "–"
    for factor, unit in _UNITS:
        if num_bytes >= 0.9995 * factor:
            number = num_bytes / factor
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{num_bytes:.0f} B"


def moment(seconds: float) -> Markup:
    """A time element with the time of day; status.js leaves it alone."""
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(_iso(at), at.strftime("%H:%M:%S"))


def since(seconds: float, now: float) -> Markup:
    """A time element with the age of a moment, which status.js keeps up to date."""
    at = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}" data-age>{}</time>').format(_iso(at), age(now - seconds))


def blame(fault: str) -> str:
    """Whose fault it is, in words."""
    return _FAULTS[fault]


def words(name: str) -> str:
    """A field's name as words."""
    return name.replace("_", " ")


def bars(values: Sequence[float | None], top: float, below: Sequence[float] | None = None) -> str:
    """The path of a bar chart: one bar per minute, `top` at the upper edge, each on top of the bar in `below`."""
    path = []
    for index, value in enumerate(values):
        if not value:
            continue
        foot = below[index] if below else 0.0
        height = max(0.6, value / top * CHART_HEIGHT)
        y = CHART_HEIGHT - foot / top * CHART_HEIGHT
        path.append(f"M{index + 0.1:.1f} {y:.2f}v{-height:.2f}h.8v{height:.2f}z")
    return "".join(path)


def line(values: Sequence[float], low: float, high: float) -> str:
    """The path of a line with a step for each value, from the left edge to the right, `high` at the upper edge."""
    width = CHART_WIDTH / len(values)
    steps = (f"{level(value, low, high)}H{width * (index + 1):.2f}" for index, value in enumerate(values))
    return "M0 " + "V".join(steps)


def level(value: float, low: float, high: float) -> str:
    """Where a value lies in a chart, from its upper edge."""
    share = (value - low) / (high - low) if high > low else 0.5
    return f"{CHART_HEIGHT * (1 - share):.2f}"


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _version_of_files() -> str:
    """Changes with the style and the script, so that browsers may keep them."""
    folder = files("service.http_api.status_page") / "static"
    contents = b"".join((folder / name).read_bytes() for name in sorted(FILES))
    return hashlib.sha256(contents).hexdigest()[:12]


FILES = {"status.css": "text/css", "status.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""What the pages need beside their HTML."""

_environment = Environment(
    loader=PackageLoader("service.http_api.status_page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.filters.update(
    duration=duration,
    size=size,
    moment=moment,
    since=since,
    blame=blame,
    words=words,
    bars=bars,
    line=line,
    level=level,
)
_environment.globals.update(
    CHART_WIDTH=CHART_WIDTH, CHART_HEIGHT=CHART_HEIGHT, files_version=_version_of_files()
)
