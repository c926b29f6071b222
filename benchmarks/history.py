"""What earlier runs measured: to resume one that was broken off, and to notice ratios that fell."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Outcome

LARGEST_FALL = 0.1  # a larger part of a ratio is not noise: medians of alternating runs vary by less

Record = Mapping[str, Any]


def record(outcome: Outcome) -> dict[str, Any]:
    """An outcome with when, of which commit and on which machine it was measured."""
    return outcome.to_json() | {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
    }


class Records:
    """The results of a run in a folder, each written as soon as its case ends.

    ``latest.json`` holds the latest result of each case, ``history.jsonl`` all results, and
    ``unfinished.json`` those of a run that has not ended: the next one of the same cases, commit and machine
    resumes it.

    Args:
        folder: Made if it does not exist.
        only: The texts that selected the cases.
        quick: Whether the runs are short ones.
        fresh: Whether to measure again what an unfinished run has measured.

    Attributes:
        history: The results of earlier runs.
        results: Those of this run.
        resumed: Names of the cases that the unfinished run has measured.
    """

    def __init__(self, folder: Path, only: Sequence[str], quick: bool, fresh: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._latest, self._unfinished = folder / "latest.json", folder / "unfinished.json"
        self._history = folder / "history.jsonl"
        self._run = {"only": list(only), "quick": quick, "commit": commit(), "machine": machine()}
        lines = self._history.read_text().splitlines() if self._history.is_file() else []
        self.history: list[Record] = [json.loads(line) for line in lines]
        self.results: list[Record] = []
        if self._unfinished.is_file() and not fresh:
            earlier = json.loads(self._unfinished.read_text())
            if earlier["run"] == self._run:
                self.results = earlier["results"]
        self.resumed = frozenset(result["name"] for result in self.results)

    def add(self, result: Record) -> None:
        """Writes the result of a case."""
        self.results.append(result)
        _write(self._unfinished, {"run": self._run, "results": self.results})
        latest = json.loads(self._latest.read_text()) if self._latest.is_file() else []
        results: dict[str, Record] = {entry["name"]: entry for entry in latest}
        results[result["name"]] = result
        _write(self._latest, list(results.values()))
        with self._history.open("a") as file:
            file.write(json.dumps({**result, "quick": self._run["quick"]}) + "\n")

    def finish(self) -> None:
        """Notes that the run has ended."""
        self._unfinished.unlink(missing_ok=True)


def fallen(results: Iterable[Record], history: Sequence[Record]) -> Iterator[tuple[str, float, float]]:
    """The cases whose ratio is more than `LARGEST_FALL` below the median of earlier runs on this machine.

    Yields:
        Name, ratio before, ratio now.
    """
    for result in results:
        before = [
            entry["ratio"]
            for entry in history
            if entry["name"] == result["name"] and entry["machine"] == result["machine"] and entry["ratio"]
        ]
        if before and result["ratio"]:
            usual = statistics.median(before)
            if result["ratio"] < usual * (1 - LARGEST_FALL):
                yield result["name"], usual, result["ratio"]


def machine() -> str:
    """The processor and its number of cores: ratios of different machines are not compared."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of this checkout, marked if code differs: what runs write, and documents, do not count."""
    written = [f":(top,exclude){path}" for path in ("*.md", "docs", "benchmarks/compare/results.json")]
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *written)
    return f"{head}-dirty" if changed else head or "unknown"


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    told = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _write(path: Path, content: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
