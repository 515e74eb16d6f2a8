"""The self-contained HTML page that every report is: one style sheet, one script, and a mark by which it is known."""

from importlib.resources import files
from pathlib import Path
from string import Template

from service.cli.charts import NUM_COLOURS

_MARKER_WITHIN_BYTES = 1024


def render_page(command: str, title: str, body: str, num_shown: int) -> str:
    """The page of a command, such as "score --report"; colours for `num_shown` of what it shows."""
    template = Template(files("service.cli").joinpath("report_page.html").read_text(encoding="utf-8"))
    colours = "\n".join(f".s{i} {{ --col:var(--c{i % NUM_COLOURS}); }}" for i in range(num_shown))
    return template.substitute(marker=_marker(command), title=title, colours=colours, body=body)


def is_page_of(command: str, path: Path) -> bool:
    """Whether a file is a page of this command, which a new one may replace."""
    try:
        with path.open("rb") as file:
            return _marker(command).encode() in file.read(_MARKER_WITHIN_BYTES)
    except OSError:
        return False


def _marker(command: str) -> str:
    return f'<meta name="generator" content="soma-eval {command}">'
