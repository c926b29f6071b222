"""From which cosine on a match is confident: chosen on the tuning images, stored in the model's manifest.

A pair is a name that some image holds and a region. It is right when the region is the
best one of an instance of that name; other regions that overlap such an instance are neither right
nor wrong. The cut-off is the cosine with the best F1 over all pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation import rle
from evaluation.predictions import Predictions
from evaluation.rle import BoolArray, FloatArray

FOUND = 0.5  # IoU from which a region counts as the thing

_NEITHER, _WRONG, _RIGHT = -1, 0, 1


@dataclass(frozen=True)
class Pairs:
    """Names against regions, of which it is known whether they match.

    Attributes:
        scores: Cosines, (pairs,).
        right: Whether they match, (pairs,).
        image: Index of the region's sample, (pairs,).
    """

    scores: FloatArray
    right: BoolArray
    image: NDArray[np.intp]

    def of(self, images: BoolArray) -> Pairs:
        """Those whose region is in one of these samples, (samples,) bool."""
        chosen = images[self.image]
        return Pairs(self.scores[chosen], self.right[chosen], self.image[chosen])

    def cut_off(self) -> float | None:
        """The score with the best F1; None where nothing matches."""
        order = np.argsort(-self.scores, kind="stable")
        hits = np.cumsum(self.right[order])
        if not hits.size or not hits[-1]:
            return None
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        return float(self.scores[order][f1.argmax()])


def measured_pairs(predictions: Predictions) -> Pairs:
    """All pairs that are right or wrong."""
    labels = _Labels(predictions)
    scores, right, image = [np.zeros(0)], [np.zeros(0, np.bool_)], [np.zeros(0, np.intp)]
    for category in labels.categories:
        found, label = predictions.texts.regions[predictions.rows[category]], labels.of(category)
        known = (label != _NEITHER) & np.isfinite(found)
        scores.append(found[known])
        right.append(label[known] == _RIGHT)
        image.append(labels.image[known])
    return Pairs(np.concatenate(scores), np.concatenate(right), np.concatenate(image))


def write_cut_off(manifest: Path, crop_policy: str, score: float) -> None:
    """Puts a cut-off into the manifest of an embedder, in place of the one for this crop policy."""
    content = json.loads(manifest.read_text())
    content["cut_offs"] = content.get("cut_offs", {}) | {crop_policy: round(score, 4)}
    manifest.write_text(json.dumps(content, indent=2) + "\n")


class _Labels:
    """What each region is to each category."""

    def __init__(self, predictions: Predictions) -> None:
        samples, regions = predictions.dataset.samples, predictions.index.regions
        counts = [len(found) for found in regions]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.intp)])
        self.image = np.repeat(np.arange(len(counts)), counts)
        self.category = np.full(len(self.image), -1, dtype=np.intp)  # of the best region of each instance
        self._overlapping: dict[int, list[int]] = {}
        self._unknown: dict[int, list[int]] = {}  # category -> samples that may or may not hold it
        for image, (sample, found) in enumerate(zip(samples, regions, strict=True)):
            iou = rle.iou([one.mask for one in sample.instances], found.masks)
            for instance, row in zip(sample.instances, iou, strict=True):
                columns = (self.starts[image] + np.flatnonzero(row > 0)).tolist()
                self._overlapping.setdefault(instance.category, []).extend(columns)
                if row.size and row.max() >= FOUND:
                    self.category[self.starts[image] + row.argmax()] = instance.category
        for category in self._overlapping:
            self._unknown[category] = [
                image
                for image, sample in enumerate(samples)
                if sample.absent is not None
                and category not in sample.absent
                and category not in sample.categories
            ]

    @property
    def categories(self) -> Sequence[int]:
        """Those that some image holds."""
        return sorted(self._overlapping)

    def of(self, category: int) -> NDArray[np.int8]:
        """(regions,)"""
        labels = np.full(len(self.image), _WRONG, np.int8)
        for image in self._unknown[category]:
            labels[self.starts[image] : self.starts[image + 1]] = _NEITHER
        labels[self._overlapping[category]] = _NEITHER
        labels[self.category == category] = _RIGHT
        return labels
