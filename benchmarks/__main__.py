"""``python -m benchmarks``: measures case by case; writes ``out/latest.json`` and ``out/history.jsonl``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import structlog
from rich.console import Console

from benchmarks.harness import Case, Outcome, SkipCase, discover, measure
from benchmarks.history import Records, fallen, record
from services.runtime.server import SWITCH_S

OUTPUT = Path(__file__).parent / "out"
_ROW = "{:<78} {:>10} {:>10} {:<14} {:>7} {:>7}"


def main() -> int:
    """Returns 1 when a case failed, or when ``--check`` is given and a target was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed as ratios, side by side."
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="cases whose name has this text"
    )
    parser.add_argument("--quick", action="store_true", help="two runs, no slow cases: six minutes")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--fresh", action="store_true", help="do not resume a run that was broken off")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the results (%(default)s)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    sys.setswitchinterval(SWITCH_S)  # as in every process that serves
    console = Console(stderr=True)
    records = Records(options.output, sorted(options.only), options.quick, options.fresh)
    failed = False
    print(_ROW.format("case", "ours", "reference", "unit", "ratio", "target"))
    for area, cases in discover():
        if isinstance(cases, str):
            console.print(f"[yellow]{area}: left out, {cases}[/yellow]")
            continue
        for case in cases:
            if not _wanted(case, options.only, options.quick):
                continue
            if case.name in records.resumed:
                print(f"{case.name:<78} measured before the run was broken off")
                continue
            try:
                with console.status(case.name):
                    outcome = measure(case, options.quick)
            except SkipCase as why:
                console.print(f"[yellow]{case.name}: left out, {why}[/yellow]")
            except Exception:  # one case is no reason to lose what the others took an hour for
                console.print_exception()
                failed = True
            else:
                print(_row(outcome), flush=True)
                records.add(record(outcome))
    if not records.results:
        if not failed:
            console.print("[red]no case has such a name[/red]")
        return 1
    records.finish()
    for name, before, now in fallen(records.results, records.history):
        console.print(f"[red]{name}: {now:.2f}, on this machine it was {before:.2f}[/red]")
    missed = any(
        each["ratio"] < each["target"] for each in records.results if each["ratio"] and each["target"]
    )
    return 1 if failed or (options.check and missed) else 0


def _wanted(case: Case, only: list[str], quick: bool) -> bool:
    named = not only or any(text in case.name for text in only)
    return named and not (quick and case.slow)


def _row(outcome: Outcome) -> str:
    return _ROW.format(
        outcome.case.name,
        f"{outcome.ours:.4g}",
        "" if outcome.reference is None else f"{outcome.reference:.4g}",
        outcome.case.unit,
        "" if outcome.ratio is None else f"{outcome.ratio:.2f}",
        ""
        if outcome.case.target is None
        else f"{outcome.case.target:g}{' !' if outcome.reached is False else ''}",
    )


if __name__ == "__main__":
    sys.exit(main())
