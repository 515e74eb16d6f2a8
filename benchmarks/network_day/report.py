"""The table and the plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.network_day.day import GBIT, Cluster
from benchmarks.network_day.service_times import H100_FLOAT32, H100_TF32, MIB
from benchmarks.network_day.sweep import (
    PLOTTED_NODES,
    Case,
    DispatchCost,
    Found,
    find,
    other_cases,
    plotted_cases,
    saturation,
    steady,
)
from benchmarks.network_day.workload import Workload
from service.cli.charts import WIDTH, Line, line_chart

HEADER = (
    "| case | answered | p50 | p99 | GPUs busy | of that computing | loads per evaluation | link busy | "
    "event loop busy | GPU s per submission | cost of 1,000 |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
_NAMES = {
    "steady": "weights on every node",
    "first 10": "first 2 h of an epoch, 10 Gbit/s",
    "first 100": "the same, 100 Gbit/s",
}
"""What the plot calls the groups of cases that it shows."""
_STYLE = """
text{font:11px system-ui,sans-serif;fill:#667}
.grid{stroke:#9aa6;fill:none}
.line{fill:none;stroke-width:2}
.s0{stroke:#2563eb}.s1{stroke:#dc2626}.s2{stroke:#d97706}.s3{stroke:#6b7280;stroke-dasharray:4 3}
"""


def write(price: float, image: Path) -> None:
    """Print the rows by number of nodes and where the head ends, and write the plot."""
    print(HEADER)
    plotted = []
    for found in find(plotted_cases()):
        plotted.append(found)
        print(row(found, price), flush=True)
    rates = {group: [_rate(each) for each in plotted if each.case.group == group] for group in _NAMES}
    image.write_text(plot(rates))
    print(f"\n{image} is written\n")
    print_saturation()


def others(price: float) -> None:
    """Print the rows in which one thing is changed at a time."""
    print(HEADER)
    for found in find(other_cases()):
        print(row(found, price), flush=True)


def whole_days(numbers_of_nodes: Sequence[int], price: float) -> None:
    """Print a row for each: a whole day, its weights nowhere at its start."""
    print(HEADER)
    cases = [Case("day", f"a whole day, {n} nodes", Workload(), _cold(n)) for n in numbers_of_nodes]
    for found in find(cases):
        print(row(found, price), flush=True)


def _cold(num_nodes: int) -> Cluster:
    return Cluster(num_nodes)


def row(found: Found, price: float) -> str:
    """One line of the table."""
    day, cluster = found.day, found.case.cluster
    cells = (
        f"{found.case.group}: {found.case.label}",
        f"{day.outcomes.num_done / max(1, found.num_asked):.0%}",
        f"{found.response_seconds(0.5):.1f} s",
        f"{found.response_seconds(0.99):.1f} s",
        f"{day.gpu_busy_seconds / day.seconds / cluster.num_nodes:.0%}",
        f"{found.computing_share:.0%}",
        f"{day.num_loads / max(1, found.num_evaluations):.2f}",
        f"{day.link_busy:.0%}",
        f"{found.event_loop_seconds / day.seconds:.0%}",
        f"{found.gpu_seconds_each:.1f} ({found.busy_seconds_each:.1f})",
        f"${1000 * found.gpu_seconds_each / 3600 * price:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def print_saturation() -> None:
    """Where each part of the head ends."""
    load = Workload(seconds=300.0, submissions_per_second=4.0)
    few, many = find([Case("dispatch", f"{n} nodes", load, steady(n)) for n in (16, 96)])
    cost = DispatchCost.of(few, many)
    print(
        f"dispatch: {cost.per_task * 1000:.2f} ms a task and {cost.per_task_and_node * 1e6:.1f} us more for each node\n"
    )
    print(
        "| every GPU computes all the time | event loop | link of 10 Gbit/s | of 100 Gbit/s | disk of 2 GB/s |"
    )
    print("|---|---:|---:|---:|---:|")
    for device in (H100_FLOAT32, H100_TF32):
        for name, size in (("10 KB", 10_000), ("1 MiB", MIB)):
            slow, fast = (
                saturation(f"{name}, {device.name}", device, size, cost, link * GBIT) for link in (10, 100)
            )
            print(f"| {slow.label} | {slow.event_loop} | {slow.link} | {fast.link} | {slow.disk} |")


def plot(rates: Mapping[str, Sequence[float]]) -> str:
    """Submissions answered each second for each of PLOTTED_NODES, by group of cases, as an SVG file."""
    nodes = np.array(PLOTTED_NODES, dtype=np.float64)
    lines = [
        Line(name, colour, np.array(rates[group])) for colour, (group, name) in enumerate(_NAMES.items())
    ]
    computing = 3 * (10 * H100_FLOAT32.per_sequence + H100_FLOAT32.per_batch)
    lines.append(Line("computing alone", 3, np.minimum(1.0, nodes / computing)))
    figure = line_chart(
        "Submissions answered each second", nodes, lines, "GPUs", "submissions/s", logarithmic=True
    )
    svg = figure[figure.index("<svg") : figure.index("</svg>")]
    key = "".join(
        f'<path class="line s{line.colour}" d="M48 {246 + 16 * i}h18"/>'
        f'<text x="72" y="{250 + 16 * i}">{line.name}</text>'
        for i, line in enumerate(lines)
    )
    old, new = svg.split(">", 1)[0], f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 310"'
    return f"{new}><style>{_STYLE}</style>{svg[len(old) + 1 :]}{key}</svg>\n"


def _rate(found: Found) -> float:
    return found.day.outcomes.num_done / found.case.load.seconds
