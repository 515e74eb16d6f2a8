"""`soma-eval screen --report`: a page that shows how near the pieces came to the targets."""

from html import escape
from pathlib import Path

from service.cli.charts import histogram
from service.cli.printable import printable
from service.cli.report_page import is_page_of, render_page
from service.cli.screen.nearness import Nearness, OfTarget
from service.scoring.screen import Id, ScreenSummary

_COMMAND = "screen --report"
_MAX_TARGETS = 200


def render_report(nearness: Nearness, summary: ScreenSummary) -> str:
    """The page."""
    verdict = (
        f"{summary.pieces_with_hits:,} of {summary.pieces:,} pieces hit a target"
        if nearness.targets
        else f"{summary.pieces:,} pieces, and no target"
    )
    failed = f'<p class="note bad">{summary.failed:,} pieces have an error.</p>' if summary.failed else ""
    sections = [f"<h1>{verdict}</h1>{failed}"]
    edges, counts = nearness.histogram()
    if counts:
        chart = histogram("How far from a hit", edges, counts, "distance less threshold", 0.0)
        sections.append(f'<p class="soft">Each piece with each target; left of the line are hits.</p>{chart}')
        sections.append(_table(nearness))
    return render_page(_COMMAND, "soma-eval: a screen", "\n".join(sections), 2)


def is_report(path: Path) -> bool:
    """Whether a file is a page of this kind, which a new one may replace."""
    return is_page_of(_COMMAND, path)


def _table(nearness: Nearness) -> str:
    known = [(name, target) for name, target in nearness.targets.items() if target.nearest is not None]
    known.sort(key=lambda each: each[1].distance - each[1].threshold)
    rows = "".join(_row(name, target) for name, target in known[:_MAX_TARGETS])
    more = f'<p class="soft">and {len(known) - _MAX_TARGETS:,} more</p>' if len(known) > _MAX_TARGETS else ""
    head = (
        "<tr><th>target</th><th>hits</th><th>nearest piece</th><th>its distance</th><th>threshold</th></tr>"
    )
    return f'<h2>Targets, the nearest first</h2><div class="scroll"><table>{head}{rows}</table></div>{more}'


def _row(name: Id, target: OfTarget) -> str:
    cells = (f"{target.hits:,}", str(target.nearest), f"{target.distance:.6f}", f"{target.threshold:g}")
    return (
        f"<tr><th>{escape(printable(str(name)))}</th>"
        + "".join(f"<td>{escape(printable(cell))}</td>" for cell in cells)
        + "</tr>"
    )
