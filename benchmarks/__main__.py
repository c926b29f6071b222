"""``python -m benchmarks``: measures, prints a table, writes ``out/latest.json``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Case, Outcome, SkipCase, discover, measure
from services.runtime.server import SWITCH_S

OUTPUT = Path(__file__).parent / "out" / "latest.json"


def main() -> int:
    """Returns 1 when a case failed, or when ``--check`` is given and a target was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed as ratios, side by side."
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="cases whose name has this text"
    )
    parser.add_argument("--quick", action="store_true", help="fewer runs, no slow cases")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes (%(default)s)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    sys.setswitchinterval(SWITCH_S)  # as in every process that serves
    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    failed = False
    for area, cases in discover():
        if isinstance(cases, str):
            console.print(f"[yellow]{area}: left out, {cases}[/yellow]")
            continue
        for case in cases:
            if not _wanted(case, options.only, options.quick):
                continue
            try:
                with console.status(case.name):
                    outcomes.append(measure(case, options.quick))
            except SkipCase as why:
                console.print(f"[yellow]{case.name}: left out, {why}[/yellow]")
            except Exception:  # one case is no reason to lose what the others took an hour for
                console.print_exception()
                failed = True
            else:
                _write(outcomes, options.output, keep_others=bool(options.only) or options.quick)
    if outcomes:
        Console().print(_table(outcomes))
    elif not failed:
        console.print("[red]no case has such a name[/red]")
    missed = any(outcome.reached is False for outcome in outcomes)
    return 1 if failed or not outcomes or (options.check and missed) else 0


def _wanted(case: Case, only: list[str], quick: bool) -> bool:
    named = not only or any(text in case.name for text in only)
    return named and not (quick and case.slow)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("case", "ours", "reference", "unit", "ratio", "target")
    for column in table.columns[1:3] + table.columns[4:]:
        column.justify = "right"
    for outcome in outcomes:
        colour = {True: "green", False: "red", None: ""}[outcome.reached]
        ratio = "" if outcome.ratio is None else f"{outcome.ratio:.2f}"
        table.add_row(
            outcome.case.name,
            f"{outcome.ours:.4g}",
            "" if outcome.reference is None else f"{outcome.reference:.4g}",
            outcome.case.unit,
            f"[{colour}]{ratio}[/{colour}]" if colour else ratio,
            "" if outcome.case.target is None else f"{outcome.case.target:g}",
        )
    return table


def _write(outcomes: list[Outcome], path: Path, keep_others: bool) -> None:
    """Writes the results; after a partial run, together with the earlier ones of the other cases."""
    results = {}
    if keep_others and path.is_file():
        results = {entry["name"]: entry for entry in json.loads(path.read_text())}
    results |= {outcome.case.name: outcome.to_json() for outcome in outcomes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(results.values()), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
