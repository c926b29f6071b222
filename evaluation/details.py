"""Next to the metrics: each image, each name, and what has changed since an earlier run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.measures import cut_masks
from evaluation.run import Result
from regionsearch.errors import invalid

COLUMNS = ("name", "images", "things", "ar@100", "click_miou", "r@1", "r@1_across", "mask_iou")


def write_details(result: Result, out: Path, pages: Mapping[Path, str]) -> None:
    """Writes `per_image.jsonl` and `per_class.csv` into a folder.

    Args:
        result: What is written.
        out: The folder.
        pages: Where an image's file is shown on a web page.
    """
    with (out / "per_image.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(image) + "\n" for image in per_image(result, pages))
    with (out / "per_class.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(per_class(result))


def per_image(result: Result, pages: Mapping[Path, str]) -> Iterator[dict[str, Any]]:
    """What was found in each image, and how well; what was not measured is null."""
    predictions = result.predictions
    inter, union = cut_masks(predictions.questions, result.cut)
    for number, sample in enumerate(predictions.dataset.samples):
        things = [thing for thing in predictions.things if thing.image == number]
        asked = [at for at, question in enumerate(predictions.questions) if question.image == number]
        yield {
            "image": sample.path.name,
            "page": pages.get(sample.path),
            "split": sample.split,
            "things": len(things),
            "regions": len(predictions.index.regions[number]),
            "ar@100": _mean([thing.recall[100] for thing in things]),
            "click_miou": _mean([thing.click_iou for thing in things]),
            "names": {
                predictions.dataset.categories[predictions.questions[at].category]: {
                    "rank": _finite(predictions.questions[at].rank_within),
                    "rank_across": _finite(predictions.questions[at].rank_across),
                    "mask_iou": _finite(inter[at] / union[at]),
                }
                for at in asked
            },
        }


def per_class(result: Result) -> Iterator[dict[str, Any]]:
    """The same for each name, in all images that hold it."""
    predictions = result.predictions
    inter, union = cut_masks(predictions.questions, result.cut)
    # Things stand in the order of the images' instances.
    instances = [one for sample in predictions.dataset.samples for one in sample.instances]
    for category, name in enumerate(predictions.dataset.categories):
        asked = [at for at, question in enumerate(predictions.questions) if question.category == category]
        things = [
            thing
            for thing, instance in zip(predictions.things, instances, strict=True)
            if instance.category == category
        ]
        if not things:
            continue
        questions = [predictions.questions[at] for at in asked]
        yield {
            "name": name,
            "images": len(asked),
            "things": len(things),
            "ar@100": _mean([thing.recall[100] for thing in things]),
            "click_miou": _mean([thing.click_iou for thing in things]),
            "r@1": _mean([float(question.rank_within <= 1) for question in questions]),
            "r@1_across": _mean([float(question.rank_across <= 1) for question in questions]),
            "mask_iou": _mean([float(inter[at] / union[at]) for at in asked]),
        }


def changes(result: Result, earlier: Path) -> dict[str, tuple[float, bool]]:
    """How much each metric has risen since an earlier run, and whether beyond both intervals.

    Args:
        result: The present run.
        earlier: Its folder, or its `metrics.json`.

    Raises:
        RegionSearchError: INVALID_ARGUMENT if it cannot be read, or measured something else.
    """
    path = earlier / "metrics.json" if earlier.is_dir() else earlier
    try:
        numbers: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before, digest = numbers["metrics"], numbers["dataset"]["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise invalid("against", f"{path} cannot be read as the metrics.json of a run: {error}") from error
    if digest != result.predictions.dataset.digest():
        raise invalid(
            "against", f"{path} was measured on other images or annotations; compare runs on the same data"
        )
    found = {}
    for one in result.measures:
        if one.key in before:
            was, now = before[one.key], one.estimate
            apart = now.low > was["high"] or now.high < was["low"]
            found[one.key] = (now.value - was["value"], apart)
    return found


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return round(float(np.mean(known)), 4) if known else None


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
