"""``python -m benchmarks.compare``: measures what is missing, a row at a time, and writes the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.compare import search, serving, whole
from benchmarks.compare.page import Highlight, pages
from benchmarks.compare.results import Results, Row

OUTPUT = Path(__file__).parents[1] / "out"
RESULTS = Path(__file__).with_name("results.json")
PARTS = [whole, serving, search]
HIGHLIGHTS = [
    Highlight("whole: search within, LanceDB, 6 images", whole.COLUMNS["image_s"], "adding an image, s"),
    Highlight("whole: upload page, FAISS, 6 images", whole.COLUMNS["image_s"], "adding an image, s"),
    Highlight(
        "search: FAISS flat, 100 k × 512",
        search.COLUMNS["rate_32"],
        "32 callers on 100 k vectors, searches/s",
    ),
    Highlight(
        "search: LanceDB, 100 k × 512", search.COLUMNS["rate_32"], "32 callers on 100 k vectors, searches/s"
    ),
    Highlight(
        "search: PostgreSQL, pgvector, 100 k × 512",
        search.COLUMNS["rate_32"],
        "32 callers on 100 k vectors, searches/s",
    ),
    Highlight(
        "search: hnswlib, 100 k × 512",
        search.COLUMNS["rate_32"],
        "32 callers on 100 k vectors, searches/s",
    ),
]


def main() -> int:
    """Returns 1 when no case has the name that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT",
        help="measure again, only rows whose name has this text, such as 'search: Chroma, 100 k'",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small and short; leaves the page as it is")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--list", action="store_true", help="only print the names of the rows")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args()
    folder = OUTPUT / "compare"
    results = Results(folder / "quick.json" if options.quick else RESULTS)
    console = Console(stderr=True)
    cases = [case for part in PARTS for case in part.cases(options.quick, folder)]
    wanted = [case for case in cases if any(text in case.row.name for text in options.only or [""])]
    for case in [] if options.page else wanted:
        if options.list:
            print(case.row.name)
        elif results.has(case) and not options.only and not options.fresh:
            print(f"{case.row.name}: measured before")
        else:
            with console.status(case.row.name):
                row = results.measure(case)
            print(text_of(row), flush=True)
    if not options.quick and not options.list:
        for path, text in pages([part.PART for part in PARTS], HIGHLIGHTS, results.rows).items():
            path.write_text(text)
    return 0 if wanted else 1


def text_of(row: Row) -> str:
    """A row as a line of text; behind a figure stands ours, measured in turns with it."""
    if row.skipped:
        return f"{row.name}: left out, {row.skipped}"
    figures = [
        f"{name} {value:.4g}" + (f" (ours {row.ours[name]:.4g})" if name in row.ours else "")
        for name, value in row.values.items()
    ]
    return f"{row.name}{' (busy)' if row.busy else ''}: {', '.join(figures)}"


if __name__ == "__main__":
    sys.exit(main())
