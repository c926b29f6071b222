"""The measured part of ``docs/comparison.md``, and the README's lines and plot: made from the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Literal

from benchmarks.compare.results import Row
from loadtests.launch import ROOT

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

_ABOUT = """\
Measured by `make compare`: each peer in an environment of its own, in turns with Region Search; medians.
Behind a figure stands how many times better Region Search did: for queries in the same turns, otherwise by
itself before. Where the peer won, the cell is bold. *busy*: other programs used the machine meanwhile, so
that only the ratios mean something.
`python -m benchmarks.compare --list` names the rows, `--only` repeats one."""
_STYLE = """\
text { font: 14px sans-serif; fill: #1f2328 } line { stroke: #59636e }
.more { fill: #0969da } .less { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } line { stroke: #9198a1 } .more { fill: #4493f8 } .less { fill: #db6d28 }
}"""


@dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        key: Its name in `Row.values`.
        title: With its unit.
        better: Which direction is the better one; None where no ratio is shown.
        of: The key of what it is a part of, shown behind it.
    """

    key: str
    title: str
    better: Literal["lower", "higher"] | None = "lower"
    of: str = ""


@dataclass(frozen=True)
class Part:
    """One table of the page.

    Attributes:
        name: That of its rows.
        title: Its heading.
        about: What was done, and how to read it.
        columns: Of the table.
        notes: Peer -> what it is and what it wins or loses by; ours first.
    """

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    notes: Mapping[str, str]


def ratio(row: Row, column: Column) -> float | None:
    """How many times better ours is; None where one side has no figure."""
    theirs, ours = row.values.get(column.key), row.ours.get(column.key)
    if not theirs or not ours or column.better is None:
        return None
    return float(theirs / ours if column.better == "lower" else ours / theirs)


def section(parts: Iterable[Part], rows: Iterable[Row]) -> str:
    """The tables and what they show, as Markdown."""
    rows = list(rows)
    lines = [_ABOUT]
    for part in parts:
        own = _completed(part, rows)
        if own:
            lines += ["", f"### {part.title}", "", part.about]
        for size in dict.fromkeys(row.size for row in own):
            lines += ["", *_table(part, own, size)]
        lines += _wins(part, own)
    machines = sorted({f"{row.machine}, {row.time[:10]}" for row in rows})
    lines += ["", f"Measured on {'; '.join(machines)}."]
    return "\n".join(lines)


def _completed(part: Part, rows: Iterable[Row]) -> list[Row]:
    """The rows of a part; what was not measured in turns is set against our own row of the same size."""
    own = [row for row in rows if row.part == part.name]
    first = next(iter(part.notes), "")
    alone = {row.size: row.values for row in own if row.peer == first}
    return [
        row if row.peer == first else replace(row, ours=alone.get(row.size, {}) | row.ours) for row in own
    ]


def _table(part: Part, own: list[Row], size: str) -> list[str]:
    rows = [row for row in own if row.size == size]
    columns = [column for column in part.columns if any(column.key in row.values for row in rows)]
    lines = [
        f"| {size} | {' | '.join(column.title for column in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for row in rows:
        name = row.peer + (f" ({row.version})" if row.version else "") + (" *busy*" if row.busy else "")
        if row.skipped:
            lines.append(f"| {name} | did not run: {_plain(row.skipped)} {'|' * len(columns)}")
        else:
            lines.append(f"| {name} | {' | '.join(_cell(row, column) for column in columns)} |")
    return lines


def _cell(row: Row, column: Column) -> str:
    value = row.values.get(column.key)
    if value is None:
        return "–"
    times = ratio(row, column)
    if column.of:
        return f"{number(value)} of {number(row.values[column.of])}"
    if times is None:
        return number(value)
    shown = f"{number(value)} ({times_of(times)})"
    return f"**{shown}**" if times < 1 else shown


def _wins(part: Part, rows: list[Row]) -> list[str]:
    """Who wins what, and why; and what the others are."""
    lines = []
    for peer, note in part.notes.items():
        won = {
            column.title: None
            for row in rows
            for column in part.columns
            if row.peer == peer and (ratio(row, column) or math.inf) < 1
        }
        if any(row.peer == peer for row in rows):
            lines.append(f"- **{peer}**{f', ahead in {_listed(won)}' if won else ''}: {note}")
    return ["", *lines] if lines else []


def _listed(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


def times_of(value: float) -> str:
    """A ratio, with two digits."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.2g}×"


def number(value: float) -> str:
    """Three digits, and no more."""
    if abs(value) < 0.001 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".rstrip("0").rstrip(".") or "0"


@dataclass(frozen=True)
class Highlight:
    """One line of the README and one bar of its plot.

    Attributes:
        row: The name of a row.
        column: Which of its figures.
        text: What was compared, with its unit.
    """

    row: str
    column: Column
    text: str


def lines(highlights: Iterable[Highlight], rows: Mapping[str, Row]) -> str:
    """The table of the README."""
    found = ["| against | what | theirs | Region Search | |", "|---|---|---:|---:|---:|"]
    for one in highlights:
        row = rows.get(one.row)
        if row is not None and (times := ratio(row, one.column)) is not None:
            theirs, ours = row.values[one.column.key], row.ours[one.column.key]
            found.append(
                f"| {row.peer} | {one.text} | {number(theirs)} | {number(ours)} | {times_of(times)} |"
            )
    return "\n".join(found)


def plot(highlights: Iterable[Highlight], rows: Mapping[str, Row]) -> str:
    """Bars of ratios on a logarithmic axis, as SVG that follows the reader's light or dark scheme."""
    bars = [
        (f"{row.peer}: {one.text}", times)
        for one in highlights
        if (row := rows.get(one.row)) is not None and (times := ratio(row, one.column)) is not None
    ]
    reach = max([1.0, *(abs(math.log10(times)) for _, times in bars)])
    height, middle, width = 26, 590, 190 / reach
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-60 0 920 {height * len(bars) + 44}" role="img" '
        f'aria-label="How many times better Region Search did than others">',
        f"<style>{_STYLE}</style>",
    ]
    for place, (label, times) in enumerate(bars):
        y, length = height * place + 8, max(1.0, abs(math.log10(times)) * width)
        left = middle if times >= 1 else middle - length
        aside = (middle + length if times >= 1 else middle) + 6
        parts += [
            f'<text x="390" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{"more" if times >= 1 else "less"}" x="{left:.1f}" y="{y + 2}" '
            f'width="{length:.1f}" height="{height - 9}" rx="2"/>',
            f'<text x="{aside:.1f}" y="{y + 14}">{times_of(times)}</text>',
        ]
    bottom = height * len(bars) + 8
    parts += [
        f'<line x1="{middle}" x2="{middle}" y1="4" y2="{bottom}"/>',
        f'<text x="{middle - 8}" y="{bottom + 20}" text-anchor="end">the other is better</text>',
        f'<text x="{middle + 8}" y="{bottom + 20}">Region Search is better</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def replaced(page: str, made: str) -> str:
    """A page with the text between the markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def pages(parts: Iterable[Part], highlights: Iterable[Highlight], rows: Mapping[str, Row]) -> dict[Path, str]:
    """What each file that is made from the results has to contain."""
    highlights = list(highlights)
    comparison, readme = ROOT / "docs" / "comparison.md", ROOT / "README.md"
    return {
        comparison: replaced(comparison.read_text(), section(parts, rows.values())),
        readme: replaced(readme.read_text(), lines(highlights, rows)),
        ROOT / "docs" / "images" / "comparison.svg": plot(highlights, rows),
    }
