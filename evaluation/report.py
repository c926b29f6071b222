"""The HTML report: one file, no network, the metrics next to the images they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation import charts, metrics
from evaluation.calibration import measured_pairs
from evaluation.figures import EXTRA, MISSED, RIGHT, panel
from evaluation.measures import HitThreshold, Measure, cut_masks, known_scores
from evaluation.predictions import TextQueryResult
from evaluation.run import Result

HEADLINES = (
    "proposals.ar@100",
    "click.miou",
    "text_region.r@1",
    "class_mask.miou",
    "image.r@1",
    "absence.auroc",
)
COMPARED = (
    "text_region.r@1",
    "text_region.r@1_across",
    "class_mask.miou",
    "image.r@1",
    "region_region.map",
    "absence.auroc",
)
GROUPS = {
    "proposals": ("Proposals", "Everything mode. Recall of the things, averaged over IoU .50:.05:.95."),
    "click": ("One click", "A click on the innermost point of a thing selects a mask."),
    "text_region": ("Text → region", "The name is asked. A region with IoU ≥ 0.5 is right."),
    "class_mask": ("Class masks", "All regions that pass the tuned cut, joined, against the truth."),
    "image": ("Text → image", "Images that contain the thing, or that the caption describes."),
    "region_region": (
        "Region → region",
        "A region as query: things of the same name in other images.",
    ),
    "large_canvas": ("Large canvases", "The same on images with a side of more than 256 pixels."),
    "absence": ("Absence", "Names in an image against absent names, by the best region score."),
    "confident": ("Confident matches", "What a search answers with the model's calibrated cut-off."),
}


def render(result: Result, pages: Mapping[Path, str] | None = None, panels: int = 12, names: int = 15) -> str:
    """The whole page.

    Args:
        result: What is shown.
        pages: Where an image's file is shown on a web page, which its panel links to.
        panels: Number of images shown, evenly spaced from the worst to the best.
        names: How many of the hardest and of the easiest names are listed.
    """
    numbers = result.as_json()
    by_key = {one.key: one for one in result.measures}
    ranked = _names(result)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval}
    return environment.get_template(
        "report.html"
    ).render(
        numbers=numbers,
        headlines=[by_key[key] for key in HEADLINES if key in by_key],
        groups={
            name: {
                "title": title,
                "meaning": meaning,
                "measures": [one for one in result.measures if one.group == name],
            }
            for name, (title, meaning) in GROUPS.items()
        },
        cut_chart=Markup(_cut_chart(result)),  # noqa: S704 (our own SVG)
        absence_chart=Markup(_absence_chart(result)),  # noqa: S704
        confident_chart=Markup(_confident_chart(result)),  # noqa: S704
        comparisons=_comparisons(result, by_key),
        comparison_keys=COMPARED,
        legend=((RIGHT, "right"), (MISSED, "missed"), (EXTRA, "too much")),
        panels=[
            (
                panel(result.predictions, image, result.cut),
                (pages or {}).get(result.predictions.dataset.samples[image].path),
            )
            for image in _spread(result, panels)
        ],
        hardest=ranked[:names],
        easiest=ranked[::-1][:names],
        facts={"seed": result.seed, "data": numbers["dataset"]["digest"], **_flat(result.system)},
    )


def _comparisons(result: Result, main: Mapping[str, Measure]) -> dict[str, Mapping[str, Measure]]:
    if not result.comparisons:
        return {}
    this = f"crop policy {result.system['crop_policy']} (this report)"
    return {this: main} | {
        name: {one.key: one for one in measures} for name, measures in result.comparisons.items()
    }


def _cut_chart(result: Result) -> str:
    """Class-mask mIoU over the threshold of the chosen rule, on both splits."""
    questions, samples = result.predictions.questions, result.predictions.dataset.samples
    grid = np.linspace(0.5, 1, 51)
    if result.cut.rule == "min_score":
        scores = known_scores(questions)
        grid = np.linspace(scores.min(), scores.max(), 101) if scores.size else grid
    series = []
    for split in ("tune", "test"):
        chosen = [question for question in questions if samples[question.image].split == split]
        if chosen:
            curve = np.array([_miou(chosen, HitThreshold(result.cut.rule, float(value))) for value in grid])
            series.append((split, split, curve))
    return charts.lines(grid, series, result.cut.value, result.cut.rule, "mIoU")


def _miou(questions: Sequence[TextQueryResult], cut: HitThreshold) -> float:
    inter, union = cut_masks(questions, cut)
    return metrics.class_balanced_mean(inter / union, [question.category for question in questions])


def _absence_chart(result: Result) -> str:
    if not result.predictions.absences:
        return ""
    present = np.concatenate([item.present for item in result.predictions.absences])
    absent = np.concatenate([item.absent for item in result.predictions.absences])
    series = [("not there", "absent", absent), ("there", "present", present)]
    known = [(name, css, scores[np.isfinite(scores)]) for name, css, scores in series]
    return charts.histogram(known, "best cosine in the image") if any(s.size for _, _, s in known) else ""


def _confident_chart(result: Result) -> str:
    """Precision and recall of matches of names and regions over the cut-off, on the test images."""
    samples = result.predictions.dataset.samples
    pairs = measured_pairs(result.predictions).of(np.array([s.split == "test" for s in samples], np.bool_))
    if result.cut_off is None or not pairs.right.any():
        return ""
    grid = np.linspace(pairs.scores.min(), pairs.scores.max(), 101)
    kept = [pairs.scores >= value for value in grid]
    right = np.array([pairs.right[chosen].sum() for chosen in kept], np.float64)
    precision = right / np.maximum([chosen.sum() for chosen in kept], 1)
    series = [("precision", "test", precision), ("recall", "tune", right / pairs.right.sum())]
    return charts.lines(grid, series, result.cut_off, "cut-off", "part")


def _spread(result: Result, count: int) -> list[int]:
    """Images evenly spaced from the worst to the best by mean class-mask IoU."""
    inter, union = cut_masks(result.predictions.questions, result.cut)
    at = np.array([question.image for question in result.predictions.questions])
    images = np.unique(at)
    ordered = images[np.argsort([(inter / union)[at == image].mean() for image in images])]
    steps = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [int(ordered[round(step)]) for step in steps]


def _names(result: Result) -> list[tuple[str, float]]:
    """Names with their class-mask IoU, the hardest first."""
    inter, union = cut_masks(result.predictions.questions, result.cut)
    classes = np.array([question.category for question in result.predictions.questions])
    names = result.predictions.dataset.categories
    pairs = [(names[c], float((inter / union)[classes == c].mean())) for c in np.unique(classes)]
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat


def _interval(one: Measure) -> str:
    return f"{_number(one.estimate.low)} – {_number(one.estimate.high)}"


def _number(value: float) -> str:
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}"
