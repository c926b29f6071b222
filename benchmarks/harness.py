"""How a benchmark is described and measured.

A module ``bench_<area>.py`` has a function ``cases() -> list[Case]``. A case compares what we do with a
reference on the same inputs: both are measured alternately, so that what else the machine does meets both
alike, and the medians are compared. The ratio is how many times better ours is, whichever direction is the
better one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import benchmarks

QUICK_RUNS = 2  # `--quick` ends within six minutes on two cores

Measure = Callable[[], float]


class SkipCase(Exception):  # noqa: N818 (no error: the others run)
    """Raised while a case is prepared: it cannot run here, and why."""


@dataclass(frozen=True)
class Pair:
    """Two measurements of the same thing, in the case's unit.

    Attributes:
        ours: One measurement of what we made.
        reference: One of what it is compared with; None where a number stands for itself.
    """

    ours: Measure
    reference: Measure | None = None


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: ``area: what``, unique.
        unit: Unit of both measurements.
        prepare: Context manager that sets everything up, yields the measurements and cleans up.
        better: Which direction is the better one.
        target: Ratio that should be reached; None without a promise.
        runs: Measurements of each side.
        slow: Left out by ``--quick``.
    """

    name: str
    unit: str
    prepare: Callable[[], contextlib.AbstractContextManager[Pair]]
    better: Literal["lower", "higher"] = "lower"
    target: float | None = None
    runs: int = 5
    slow: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came out of a case; medians, and every run."""

    case: Case
    ours: float
    reference: float | None
    runs: list[tuple[float, float | None]]
    seconds: float  # that the whole case took, with its preparation

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None without a reference, or when a difference drowned in noise."""
        if self.reference is None or min(self.ours, self.reference) <= 0:
            return None
        better, worse = (
            (self.ours, self.reference) if self.case.better == "higher" else (self.reference, self.ours)
        )
        return better / worse

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.case.target is None or self.ratio is None:
            return None
        return self.ratio >= self.case.target

    def to_json(self) -> dict[str, Any]:
        """For ``latest.json``."""
        return {
            "name": self.case.name,
            "ratio": self.ratio,
            "ours": self.ours,
            "reference": self.reference,
            "unit": self.case.unit,
            "runs": [list(run) for run in self.runs],
            "target": self.case.target,
            "seconds": round(self.seconds, 1),
        }


def measure(case: Case, quick: bool = False) -> Outcome:
    """Measures a case: one round to warm up, then ours and the reference in turns."""
    begin = time.perf_counter()
    with case.prepare() as pair:
        _once(pair)
        runs = [_once(pair) for _ in range(min(case.runs, QUICK_RUNS) if quick else case.runs)]
    ours = statistics.median(run[0] for run in runs)
    references = [reference for _, reference in runs if reference is not None]
    reference = statistics.median(references) if references else None
    return Outcome(case, ours, reference, runs, time.perf_counter() - begin)


def _once(pair: Pair) -> tuple[float, float | None]:
    gc.collect()
    return pair.ours(), None if pair.reference is None else pair.reference()


def timed(work: Callable[[], object]) -> Measure:
    """A measurement: the seconds that `work` takes."""

    def seconds() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return seconds


def constant(value: float) -> Measure:
    """A reference that is computed rather than measured: an ideal, a budget."""
    return lambda: value


def discover() -> Iterator[tuple[str, list[Case] | str]]:
    """The areas with their cases, or with the reason why they cannot run here."""
    for module in sorted(pkgutil.iter_modules(benchmarks.__path__), key=lambda module: module.name):
        if module.name.startswith("bench_"):
            area = module.name.removeprefix("bench_")
            try:
                yield area, importlib.import_module(f"benchmarks.{module.name}").cases()
            except ImportError as error:
                yield area, f"not installed: {error.name or error}"
