"""`soma-eval score --report`: one self-contained page, for looking rather than reading.

Everything along the data is cross-entropy alone: it is a number of each byte, and no seed changes it. SIGReg is
a number of a whole batch, and is in the losses at the top.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.cli.charts import Line, gap_chart, line_chart
from service.cli.output_file import write_whole
from service.cli.printable import printable
from service.cli.report_page import is_page_of, render_page
from service.cli.score.names import distinct_names
from service.cli.score.remarks import remarks, title_of
from service.cli.score.score_sheet import Outcome, ScoreSheet
from service.errors import ZeroEmbedding
from service.scoring.competition import cosine_distance

Array = NDArray[np.float64]

_COMMAND = "score --report"
_SIG_REG_COEFFICIENT = 0.02
_MAX_POINTS = 240
_NUM_POSITION_BINS = 40
_EXCERPT_BYTES = 160
_NUM_EXCERPTS = 3
_MAX_COMPARED = 6
_MAX_SHOWN = 24
_NAME_WIDTH = 40

MORE_COLOURS = (_MAX_SHOWN, _MAX_SHOWN + 1)
"""Of lines that belong to no candidate: no button of a candidate hides them."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate as the page shows it: best first, each with its colour."""

    name: str
    colour: int
    outcome: Outcome
    bits: tuple[Array, ...]
    """For each file of data [num_sequences, tokens]: bits of every token, NaN for padding."""


_ARCHITECTURES = {"network": "the full model", "small": "the small model"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the numbers of a page come from, beside what the sheet knows of them."""

    computed_at: datetime
    """UTC."""
    command: str
    """One that gives the same numbers again; no key is in it."""
    architecture_version: str
    architecture: str
    """Its name: network, small, or another."""


def render_report(sheet: ScoreSheet, origin: Origin, more_charts: str = "") -> str:
    """The page. The data of the question is read once more, to show where candidates differ.

    `more_charts` are figures of the caller's, in MORE_COLOURS.
    Raises OSError, or FileChanged where the data is no longer what was evaluated.
    """
    shown = _shown(sheet)
    sections = [_head(sheet), _bars(shown), _legend(shown)]
    if shown:
        sections.append(f'<div class="grid2">{more_charts}{"".join(_charts(sheet, shown))}</div>')
        sections.append(_differences(sheet, shown))
        sections.append(_embeddings(sheet, shown))
    sections.append(_origin(sheet, origin))
    sections.append(_foot(sheet))
    return render_page(_COMMAND, "soma-eval: scores", "\n".join(sections), _MAX_SHOWN + len(MORE_COLOURS))


def write_report(page: str, path: Path) -> None:
    """Write the page whole, or not at all. Raises OSError."""
    write_whole(path, page)


def is_report(path: Path) -> bool:
    """Whether a file is a page of this kind, which a new one may replace."""
    return is_page_of(_COMMAND, path)


def bits_of_tokens(token_cross_entropy: NDArray[np.float32], data_size: int) -> Array:
    """Bits of every token, NaN where the target is padding. [num_sequences, tokens] -> the same."""
    bits: Array = token_cross_entropy.astype(np.float64) / math.log(2)
    num_sequences, num_tokens = bits.shape
    bits[:, -1] = np.nan
    rest = data_size - (num_sequences - 1) * num_tokens
    if rest < num_tokens:
        bits[-1, rest:] = np.nan  # the target at rest - 1 is EOS
    return bits


def bits_of_bytes(bits: Array, data_size: int) -> Array:
    """Bits of every byte of the data; NaN for the first of each sequence, which nothing predicts. [data_size]"""
    by_byte = np.full(bits.shape, np.nan)
    by_byte[:, 1:] = bits[:, :-1]
    return by_byte.ravel()[:data_size]


def _shown(sheet: ScoreSheet) -> list[Shown]:
    order = sheet.best_first()[:_MAX_SHOWN]
    names = distinct_names([sheet.outcomes[i].candidate.name for i in order], _NAME_WIDTH)
    sizes = {data.name: data.size for data in sheet.question.data}
    return [
        Shown(
            name,
            colour,
            sheet.outcomes[i],
            tuple(
                bits_of_tokens(run.token_cross_entropy, sizes[run.data])
                for run in sheet.outcomes[i].runs
                if run.token_cross_entropy is not None
            ),
        )
        for colour, (name, i) in enumerate(zip(names, order, strict=True))
    ]


def _head(sheet: ScoreSheet) -> str:
    notes = "".join(
        f'<p class="note{" bad" if text.plain.startswith("✗") else ""}">{escape(text.plain[2:])}</p>'
        if text.plain[:2] in ("✗ ", "! ")
        else f"<p>{escape(text.plain)}</p>"
        for text in remarks(sheet)
    )
    title = title_of(sheet.question)
    return f'<h1>{escape(_verdict(sheet))}</h1><p class="soft">{escape(title)}</p>{notes}'


def _verdict(sheet: ScoreSheet) -> str:
    """What may be said of the best, and no more."""
    if sheet.winner is None:
        return "No candidate has a loss"
    name, tied = printable(sheet.outcomes[sheet.winner].candidate.name), sheet.near_ties()
    if tied:
        return f"A near tie of {len(tied)} candidates: none of them is clearly the best"
    if sheet.margin is None:
        return f"{name}: loss {sheet.outcomes[sheet.winner].loss:.5f}, compared with nothing"
    among = " of those that were evaluated" if sheet.is_incomplete else ""
    if sheet.question.num_runs > 1:
        return f"{name} has the lowest mean loss{among}"
    return f"{name} is best{among}"


def _bars(shown: Sequence[Shown]) -> str:
    if not shown:
        return ""
    best = shown[0].outcome.loss or 0.0
    largest = max(abs(each.outcome.loss or 0.0) for each in shown) or 1.0
    rows = []
    for each in shown:
        outcome, loss = each.outcome, each.outcome.loss or 0.0
        cross_entropy = outcome.mean(lambda run: run.cross_entropy)
        sig_reg = _SIG_REG_COEFFICIENT * outcome.mean(lambda run: run.sig_reg)
        facts = [
            f"cross-entropy {cross_entropy:.5f} + SIGReg {sig_reg:.5f}",
            f"{outcome.mean(lambda run: run.bits_per_byte):.4f} bits/byte",
        ]
        facts += (
            [f"± {outcome.loss_spread:.5f} over {len(outcome.runs)} runs"] if len(outcome.runs) > 1 else []
        )
        facts += [f"distance {outcome.distance:.5f}"] if outcome.distance is not None else []
        gap = "" if each is shown[0] else f' <span class="soft">+{loss - best:.5f}</span>'
        rows.append(
            f'<div class="row s{each.colour}"><b>{escape(each.name)}</b><span class="n">{loss:.5f}{gap}</span>'
            f'<span class="bar"><i style="width:{100 * cross_entropy / largest:.2f}%"></i>'
            f'<i style="width:{100 * sig_reg / largest:.2f}%"></i></span>'
            f'<span class="sub">{" · ".join(facts)}</span></div>'
        )
    return f'<h2>Loss</h2><div class="bars">{"".join(rows)}</div>'


def _legend(shown: Sequence[Shown]) -> str:
    chips = (
        f'<button class="chip s{each.colour}" data-chip="{each.colour}" aria-pressed="true" '
        f'title="show or hide">{escape(each.name)}</button>'
        for each in shown
    )
    return f'<div class="legend">{"".join(chips)}</div>' if len(shown) > 1 else ""


def _charts(sheet: ScoreSheet, shown: Sequence[Shown]) -> Iterator[str]:
    if len(shown) > 1:
        rows = [(each.name, each.colour, [run.loss for run in each.outcome.runs]) for each in shown]
        yield gap_chart("Loss, looked at closely", rows, "loss; a dot for each run, a bar at the mean")
    if not shown[0].bits:
        return
    along = {each.colour: np.concatenate([np.nanmean(bits, axis=1) for bits in each.bits]) for each in shown}
    num_sequences = len(along[0])
    if num_sequences > 1:
        bins = _bins(np.linspace(0, num_sequences, min(num_sequences, _MAX_POINTS) + 1))
        yield line_chart(
            "Along the data",
            np.array([start + 1.0 for start, _ in bins]),
            [Line(e.name, e.colour, _binned(along[e.colour], bins)) for e in shown],
            "sequence of 1024 bytes" + (", file after file" if len(sheet.question.data) > 1 else ""),
            "bits per byte",
        )
    num_tokens = shown[0].bits[0].shape[1]
    by_position = {each.colour: _mean_by_position(each.bits) for each in shown}
    bins = _bins(np.geomspace(1, num_tokens, _NUM_POSITION_BINS + 1) - 1)
    bins = [(start, end) for start, end in bins if np.isfinite(by_position[0][start:end]).any()]
    if len(bins) > 1:
        yield line_chart(
            "With more context",
            np.array([start + 1.0 for start, _ in bins]),
            [Line(e.name, e.colour, _binned(by_position[e.colour], bins)) for e in shown],
            "bytes seen so far in the sequence",
            "bits per byte",
            logarithmic=True,
        )


def _mean_by_position(bits: Sequence[Array]) -> Array:
    together = np.concatenate(bits)
    count = np.isfinite(together).sum(axis=0)
    total = np.nansum(together, axis=0)
    mean: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _bins(edges: Array) -> list[tuple[int, int]]:
    whole = sorted({round(edge) for edge in edges.tolist()})
    return list(itertools.pairwise(whole))


def _binned(values: Array, bins: Sequence[tuple[int, int]]) -> Array:
    means = [
        float(np.nanmean(values[start:end])) if np.isfinite(values[start:end]).any() else math.nan
        for start, end in bins
    ]
    return np.array(means)


def _differences(sheet: ScoreSheet, shown: Sequence[Shown]) -> str:
    if len(shown) < 2 or not shown[0].bits:
        return ""
    data = [held_out.read() for held_out in sheet.question.data]
    compared = [_compared(data, shown[0], other) for other in shown[1 : _MAX_COMPARED + 1]]
    key = (
        '<p class="soft key">Each byte is coloured by the difference in bits: <span class="b2">the best predicts it '
        'better</span> <span class="w2">the other does</span></p>'
    )
    opened = compared[0].replace("<details>", "<details open>", 1)
    return f"<h2>Where they differ</h2>{key}{opened}{''.join(compared[1:])}"


def _compared(data: Sequence[bytes], best: Shown, other: Shown) -> str:
    gains = [
        np.nan_to_num(theirs - ours)
        for ours, theirs in zip(_by_byte(data, best), _by_byte(data, other), strict=True)
    ]
    num_better = sum(int((gain > 0).sum()) for gain in gains)
    num_worse = sum(int((gain < 0).sum()) for gain in gains)
    num_predicted = sum(int(np.isfinite(bits).sum()) for bits in _by_byte(data, best)) or 1
    parts = []
    for words, sign in ((f"{best.name} is most ahead", 1.0), (f"{other.name} is most ahead", -1.0)):
        for name, start, amount in _largest([sign * gain for gain in gains]):
            content, gain = (
                data[name][start : start + _EXCERPT_BYTES],
                gains[name][start : start + _EXCERPT_BYTES],
            )
            place = f"byte {start:,}" + (f" of file {name + 1}" if len(data) > 1 else "")
            parts.append(
                f'<p class="soft">{escape(words)}: {amount:.0f} bits at {place}</p>'
                f'<div class="text">{_coloured(content, gain)}</div>'
            )
    share = (
        f"{best.name} predicts {100 * num_better / num_predicted:.0f} % of the bytes better, "
        f"{other.name} {100 * num_worse / num_predicted:.0f} %"
    )
    return f"<details><summary>{escape(share)}</summary>{''.join(parts)}</details>"


def _by_byte(data: Sequence[bytes], shown: Shown) -> list[Array]:
    return [bits_of_bytes(bits, len(content)) for content, bits in zip(data, shown.bits, strict=True)]


def _largest(gains: Sequence[Array]) -> list[tuple[int, int, float]]:
    """The windows with the largest sums, not overlapping: (file, start, sum), only those above one bit."""
    found: list[tuple[float, int, int]] = []
    for file, gain in enumerate(gains):
        sums = np.concatenate([[0.0], np.cumsum(gain)])
        width = min(_EXCERPT_BYTES, len(gain))
        windows = sums[width:] - sums[:-width]
        for _ in range(_NUM_EXCERPTS):
            start = int(np.argmax(windows))
            if not windows[start] > 1.0:
                break
            found.append((float(windows[start]), file, start))
            windows[max(0, start - width + 1) : start + width] = -np.inf
    best = sorted(found, reverse=True)[:_NUM_EXCERPTS]
    return [(file, start, amount) for amount, file, start in best]


def _coloured(content: bytes, gain: Array) -> str:
    """The text, every character with the colour of its bytes' gain."""
    parts: list[tuple[str, str]] = []
    at = 0
    for char in content.decode("utf-8", errors="surrogateescape"):
        size = 1 if "\udc80" <= char <= "\udcff" else len(char.encode())
        level = _level(float(gain[at : at + size].sum()))
        at += size
        text = "↵\n" if char == "\n" else (char if char.isprintable() else "·")
        if parts and parts[-1][0] == level:
            parts[-1] = (level, parts[-1][1] + text)
        else:
            parts.append((level, text))
    return "".join(
        f'<span class="{level}">{escape(text)}</span>' if level else escape(text) for level, text in parts
    )


def _level(gain: float) -> str:
    amount = sum(abs(gain) >= threshold for threshold in (0.25, 1.0, 3.0))
    return f"{'b' if gain > 0 else 'w'}{amount}" if amount else ""


def _embeddings(sheet: ScoreSheet, shown: Sequence[Shown]) -> str:
    target = sheet.question.target
    if len(shown) < 2 and target is None:
        return ""
    columns = [each.outcome.embedding for each in shown[:_MAX_COMPARED]]
    names = [each.name for each in shown[:_MAX_COMPARED]]
    if target is not None:
        columns.append(np.array(target, dtype=np.float32))
        names.append("target")
    rows = []
    for each in shown:
        distances = [_distance(each.outcome.embedding, column) for column in columns]
        cells = "".join(f"<td{_shade(d)}>{'–' if math.isnan(d) else f'{d:.4f}'}</td>" for d in distances)
        rows.append(f"<tr><th>{escape(each.name)}</th>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        "<h2>Embeddings</h2><p class='soft'>Cosine distance: 0 is the same direction, 1 at right angles, 2 opposite. "
        "The network matches targets to models by it.</p>"
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    try:
        return max(0.0, cosine_distance(a, b))
    except ZeroEmbedding:
        return math.nan


def _shade(distance: float) -> str:
    return (
        ""
        if math.isnan(distance)
        else f' style="background:rgba(var(--better),{0.45 * min(distance, 2) / 2:.3f})"'
    )


def _origin(sheet: ScoreSheet, origin: Origin) -> str:
    """Everything that is needed to get the same numbers again, and to know which files they are of."""
    runs = [run for outcome in sheet.outcomes for run in outcome.runs]
    seeds = sheet.question.seeds
    versions = {"soma-eval": version("soma-eval")} | {k: v for run in runs for k, v in run.versions.items()}
    facts = [
        ("computed at", f"{origin.computed_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("command", origin.command),
        ("seeds" if len(seeds) > 1 else "seed", ", ".join(map(str, _first_and_last(seeds)))),
        ("precision", _every({run.precision for run in runs})),
        ("device", _every({run.device for run in runs})),
        (
            "architecture",
            f"version {origin.architecture_version}, {_ARCHITECTURES.get(origin.architecture, origin.architecture)}",
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]
    for outcome in sheet.outcomes:
        if outcome.checksums is not None:
            facts.append((f"checksum of {outcome.candidate.name}", outcome.checksums.file))
        if outcome.checksums is not None and outcome.candidate.key is not None:
            facts.append(("the same, decrypted", outcome.checksums.plain))
    for data, checksum in zip(sheet.question.data, sheet.data_checksums, strict=False):
        name = "standard input" if data.name == "-" else data.name
        facts.append((f"checksum of {name}", f"{checksum} ({data.size:,} bytes)"))
    rows = "".join(
        f"<tr><th>{escape(printable(name))}</th><td>{escape(printable(text))}</td></tr>"
        for name, text in facts
    )
    return (
        "<h2>Where these numbers come from</h2><p class='soft'>Checksums are Blake2b-256 in Base58, as the network "
        f'writes them.</p><table class="facts">{rows}</table>'
    )


def _first_and_last(seeds: Sequence[int]) -> list[str]:
    return [str(seed) for seed in seeds] if len(seeds) <= 8 else [str(seeds[0]), "...", str(seeds[-1])]


def _every(values: set[str]) -> str:
    return ", ".join(sorted(values - {""})) or "unknown"


def _foot(sheet: ScoreSheet) -> str:
    hidden = len(sheet.best_first()) - _MAX_SHOWN
    more = f" {hidden} more candidates are left out." if hidden > 0 else ""
    return (
        f'<p class="soft" style="margin-top:2rem">soma-eval {version("soma-eval")}. Loss as the network computes it; '
        f"along the data only the cross-entropy, in bits per predicted byte.{more}</p>"
    )
