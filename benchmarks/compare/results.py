"""What was measured, case by case: a JSON file that a broken-off run goes on with and the page is made of."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import SkipCase
from benchmarks.history import commit, machine

WATCHED_S = 1.0
BUSY_PERCENT = 15.0  # of all processors, used by others before or after a case


@dataclass
class Row:
    """A peer in one part of the comparison.

    Attributes:
        part: "search", "serving" or "whole".
        peer: Its name in tables.
        size: What it was given, such as "100 k × 512"; rows of one size are compared.
        values: What was measured; units are in the names.
        ours: What we did in alternation with it, by the same names.
        version: Of the peer's package.
        skipped: Why it did not run; empty if it did.
        busy: Whether other programs used the machine.
    """

    part: str
    peer: str
    size: str
    values: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    skipped: str = ""
    busy: bool = False
    machine: str = ""
    commit: str = ""
    time: str = ""

    @property
    def name(self) -> str:
        """Unique; what ``--only`` selects by."""
        return f"{self.part}: {self.peer}, {self.size}"


@dataclass(frozen=True)
class Case:
    """One row to be measured.

    Attributes:
        row: With part, peer and size.
        measure: Fills in the rest of the row.
    """

    row: Row
    measure: Callable[[Row], None]


class Results:
    """The rows in a file.

    Args:
        path: Of the JSON file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows = self._read()

    def has(self, case: Case) -> bool:
        """Whether a row was measured on this machine."""
        found = self.rows.get(case.row.name)
        return found is not None and found.machine == machine()

    def measure(self, case: Case) -> Row:
        """Measures a case and keeps its row, even if it cannot run here."""
        row = case.row
        row.machine, row.commit = machine(), commit()
        row.time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with _noticing_others(row):
            try:
                case.measure(row)
            except SkipCase as why:
                row.skipped = str(why)
        self.rows = self._read() | {row.name: row}  # another run may have added some
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps([asdict(one) for one in self.rows.values()], indent=1) + "\n")
        temporary.replace(self._path)
        return row

    def _read(self) -> dict[str, Row]:
        rows = json.loads(self._path.read_text()) if self._path.exists() else []
        return {row.name: row for row in (Row(**entry) for entry in rows)}


@contextlib.contextmanager
def _noticing_others(row: Row) -> Iterator[None]:
    before = psutil.cpu_percent(WATCHED_S)
    yield
    row.busy = max(before, psutil.cpu_percent(WATCHED_S)) > BUSY_PERCENT
