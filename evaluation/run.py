"""One evaluation from data set to finished result, and what a result is."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.collecting import collect, propose
from evaluation.dataset import Dataset
from evaluation.measures import HitThreshold, Measure, measure
from evaluation.predictions import Predictions
from evaluation.system import Progress, System, VectorIndex


def silent(_stage: str, _done: int, _total: int) -> None:
    """A `Progress` without output."""


@dataclass(frozen=True)
class Result:
    """What one system reached on one data set.

    Attributes:
        predictions: What it did; images and curves are drawn from it.
        measures: The numbers.
        cut: The rule that decided what is a hit in class masks, chosen on the tuning images.
        cut_off: From which cosine of a name and a region a match is confident: the system's own, else
            chosen on the tuning images.
        system: Its description.
        timings: Its stages, milliseconds.
        comparisons: The same numbers of other systems, by name (crop policies, baselines).
        index_recall: Recall of each kind of index against exact search; empty if not measured.
        seed: Random seed.
    """

    predictions: Predictions
    measures: Sequence[Measure]
    cut: HitThreshold
    cut_off: float | None
    system: Mapping[str, Any]
    timings: Mapping[str, Mapping[str, float]]
    seed: int
    comparisons: Mapping[str, Sequence[Measure]] = field(default_factory=dict)
    index_recall: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All numbers and all that is needed to get them again."""
        dataset = self.predictions.dataset
        return {
            "dataset": {
                "name": dataset.name,
                "pictures": len(dataset.samples),
                "things": sum(len(sample.instances) for sample in dataset.samples),
                "names": len(dataset.categories),
                "digest": dataset.digest(),
            },
            "system": dict(self.system),
            "seed": self.seed,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "cut": {"rule": self.cut.rule, "value": self.cut.value},
            "cut_off": self.cut_off,
            "metrics": {one.key: one.as_json() for one in self.measures},
            "index_recall": dict(self.index_recall),
            "timings": {stage: dict(values) for stage, values in self.timings.items()},
            "comparisons": {
                name: {one.key: one.as_json() for one in measures}
                for name, measures in self.comparisons.items()
            },
        }


def run(
    system: System,
    dataset: Dataset,
    *,
    others: Mapping[str, System] | None = None,
    seed: int = 0,
    draws: int = 1000,
    calibrate: bool = False,
    progress: Progress = silent,
) -> Result:
    """Measures a system, and for comparison others that differ in proposals, crop policy or embedder.

    Others that have the same segmenter object as the main system share its proposals.

    Args:
        system: What is measured.
        dataset: On what.
        others: Systems to compare, by name.
        seed: Random seed of absent names, region queries and bootstrap.
        draws: Number of bootstrap samples.
        calibrate: Choose the cut-off of confident matches on the tuning images although the system has one.
        progress: Told how far it is.
    """
    proposals = propose(system, dataset, progress)
    predictions = collect(system, dataset, proposals, seed=seed, progress=progress)
    served = None if calibrate else system.describe().get("cut_off")
    measures, cut, cut_off = measure(predictions, seed=seed, draws=draws, served_cut_off=served)
    comparisons = {}
    for name, other in (others or {}).items():
        same = getattr(other, "segmenter", other) is getattr(system, "segmenter", None)
        found = proposals if same else propose(other, dataset, progress)
        seen = collect(other, dataset, found, seed=seed, progress=progress, clicks=False)
        comparisons[name], _, _ = measure(seen, seed=seed, draws=draws)
    return Result(
        predictions,
        measures,
        cut,
        cut_off,
        system.describe(),
        system.timings(),
        seed,
        comparisons,
        _index_recall(predictions),
    )


def _index_recall(predictions: Predictions) -> dict[str, float]:
    """Only of an index whose vectors are at hand; the queries are the names that were asked."""
    if not isinstance(predictions.index, VectorIndex):
        return {}
    from evaluation.index_recall import index_recall

    names = [predictions.dataset.categories[category] for category in predictions.rows]
    return index_recall(predictions.index.region_vectors, predictions.index.embed_texts(names))


def hardware() -> dict[str, Any]:
    """The machine, as far as it matters for timings."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
