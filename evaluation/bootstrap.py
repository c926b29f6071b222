"""Confidence intervals: the percentile bootstrap, with whole images as the unit that is drawn.

Things in one image share its luck, so that drawing things rather than images would give intervals that
are too narrow (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8 and 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from evaluation.rle import FloatArray

# From how often each image was drawn, (images,), to the metric.
Statistic = Callable[[FloatArray], float]


@dataclass(frozen=True)
class Estimate:
    """A metric and its 95 % interval; nan where there was nothing to measure."""

    value: float
    low: float
    high: float


def estimate(statistic: Statistic, images: int, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """The statistic of the images as they are, and the 2.5 and 97.5 percentiles over redrawn ones.

    Args:
        statistic: Takes the weight of each image.
        images: How many there are.
        draws: Redrawn data sets.
        seed: Equal seeds draw the same images, so that systems can be compared.
    """
    redrawn = [statistic(weights) for weights in _redrawn(images, draws, seed)]
    return _summary(statistic(np.ones(images)), np.array(redrawn))


def estimate_ratio(parts: FloatArray, wholes: FloatArray, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """`estimate` of a ratio of sums, all draws at once.

    Args:
        parts: What each image adds above the line, (images,).
        wholes: What it adds below, (images,).
        draws: Redrawn data sets.
        seed: As in `estimate`.
    """
    weights = _redrawn(len(parts), draws, seed)
    with np.errstate(invalid="ignore"):
        return _summary(float(parts.sum() / wholes.sum()), (weights @ parts) / (weights @ wholes))


def _summary(value: float, redrawn: FloatArray) -> Estimate:
    known = redrawn[~np.isnan(redrawn)]
    if np.isnan(value) or not known.size:
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


@lru_cache(maxsize=2)
def _redrawn(images: int, draws: int, seed: int) -> FloatArray:
    """How often each image is drawn, (draws, images)."""
    chosen = np.random.default_rng(seed).integers(images, size=(draws, images))
    return np.stack([np.bincount(row, minlength=images) for row in chosen]).astype(np.float64)
