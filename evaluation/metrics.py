"""The metrics, as pure functions of arrays.

Those that average over many images take `weights`, one number per item: the bootstrap counts how often an
item's image was drawn, and the plain value has every weight 1. A metric with nothing to measure is nan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.rle import BoolArray, FloatArray

IntArray = NDArray[np.int64]

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100  # COCO's .50:.05:.95

# COCO's size classes, pixels: small is below 32 x 32, large from 96 x 96 on.
SIZE_EDGES = (32**2, 96**2)


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The weighted mean."""
    values, weights = _weighted(values, weights)
    return _ratio((values * weights).sum(), weights.sum())


def class_balanced_mean(values: ArrayLike, classes: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The mean over classes of the mean within each class (mIoU, mAP); classes of weight 0 do not count.

    Args:
        values: (N,).
        classes: (N,) non-negative integers.
        weights: (N,).
    """
    values, weights = _weighted(values, weights)
    index = np.asarray(classes, dtype=np.intp)
    total = np.bincount(index, weights)
    present = total > 0
    return mean(np.bincount(index, values * weights)[present] / total[present])


def matched(iou: FloatArray, threshold: float) -> BoolArray:
    """Which truths are found when each proposal, best first, takes the best truth that is still free.

    COCO's matching, one proposal to one truth.

    Args:
        iou: (truths, proposals), the proposals best first.
        threshold: The least IoU that is a find.

    Returns:
        (truths,) bool.
    """
    free = np.ones(len(iou), dtype=bool)
    for column in iou.T[(iou >= threshold).any(axis=0)]:
        candidates = np.where(free, column, -1.0)
        best = candidates.argmax()
        if candidates[best] >= threshold:
            free[best] = False
    return ~free


def average_recall(iou: FloatArray, top: int) -> FloatArray:
    """For each truth, the part of `IOU_THRESHOLDS` at which the first `top` proposals find it.

    Its mean over the truths of a data set is COCO's AR@top.

    Args:
        iou: (truths, proposals), the proposals best first.
        top: Proposals that count.
    """
    found = [matched(iou[:, :top], threshold) for threshold in IOU_THRESHOLDS]
    return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def size_class(areas: ArrayLike) -> NDArray[np.intp]:
    """0 for small, 1 for medium, 2 for large areas in pixels, by COCO's edges.

    An area on an edge belongs to the larger class; COCO counts it in both.
    """
    return np.searchsorted(SIZE_EDGES, np.asarray(areas), side="right")


def hit_rank(scores: FloatArray, relevant: BoolArray) -> float:
    """Rank, from 1, of the first relevant item when items are sorted by falling score; inf if there is none.

    An item of score -inf was not retrieved. Ties count against: an item that is not relevant stands before a
    relevant one of the same score.
    """
    if not relevant.any():
        return float("inf")
    best = scores[relevant].max()
    return float(1 + (scores[~relevant] >= best).sum()) if best > -np.inf else float("inf")


def average_precision(scores: FloatArray, relevant: BoolArray, total: int | None = None) -> float:
    """The mean of the precision at each relevant item, without interpolation.

    Args:
        scores: (N,); ties count against, as in `hit_rank`.
        relevant: (N,) bool.
        total: Relevant things in all, where some cannot be retrieved at all; by default those in `relevant`.
    """
    hits = _ranked(scores, relevant)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return _ratio(precision[hits].sum(), hits.sum() if total is None else total)


def precision_at(scores: FloatArray, relevant: BoolArray, top: int) -> float:
    """The relevant part of the first `top` items by falling score; ties count against, as in `hit_rank`."""
    return float(_ranked(scores, relevant)[:top].sum() / top)


def auroc(
    positives: ArrayLike, negatives: ArrayLike, weights: tuple[ArrayLike, ArrayLike] | None = None
) -> float:
    """Chance that a positive's score is above a negative's, ties half: the area under the ROC curve."""
    positives, wp = _weighted(positives, None if weights is None else weights[0])
    negatives, wn = _weighted(negatives, None if weights is None else weights[1])
    order = np.argsort(negatives)
    below = np.concatenate([[0.0], np.cumsum(wn[order])])
    ranked = negatives[order]
    wins = (
        below[np.searchsorted(ranked, positives, "left")] + below[np.searchsorted(ranked, positives, "right")]
    ) / 2
    return _ratio((wins * wp).sum(), wp.sum() * wn.sum())


def fpr_at_recall(
    positives: ArrayLike,
    negatives: ArrayLike,
    recall: float = 0.95,
    weights: tuple[ArrayLike, ArrayLike] | None = None,
) -> float:
    """Part of the negatives at or above the highest threshold that keeps `recall` of the positives."""
    positives, wp = _weighted(positives, None if weights is None else weights[0])
    negatives, wn = _weighted(negatives, None if weights is None else weights[1])
    if wp.sum() == 0:
        return float("nan")
    order = np.argsort(-positives)
    kept = np.cumsum(wp[order]) / wp.sum()
    threshold = positives[order][np.searchsorted(kept, recall - 1e-12)]
    return _ratio(wn[negatives >= threshold].sum(), wn.sum())


def union_curve(truth: BoolArray, masks: Sequence[BoolArray]) -> tuple[IntArray, IntArray]:
    """Pixels of intersection and union of a truth with the union of the first r masks, for each r.

    Args:
        truth: (H, W).
        masks: (H, W) each, in the order in which they join.

    Returns:
        Two arrays (len(masks) + 1,), starting with no mask.
    """
    joined_at = np.full(truth.shape, len(masks) + 1)
    for rank in range(len(masks), 0, -1):
        joined_at[masks[rank - 1]] = rank
    inside = np.bincount(joined_at[truth], minlength=len(masks) + 2)[1:-1]
    outside = np.bincount(joined_at[~truth], minlength=len(masks) + 2)[1:-1]
    intersections = np.concatenate([[0], np.cumsum(inside)])
    unions = truth.sum() + np.concatenate([[0], np.cumsum(outside)])
    return intersections, unions


def index_recall(exact: IntArray, found: Sequence[Sequence[int]]) -> FloatArray:
    """For each query, the part of its exact neighbours (queries, k) among those that were found."""
    return np.array([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, found, strict=True)])


def _ranked(scores: FloatArray, relevant: BoolArray) -> BoolArray:
    """`relevant` by falling score, of equal scores the irrelevant first."""
    return relevant[np.lexsort((relevant, -scores))]


def _weighted(values: ArrayLike, weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    array = np.asarray(values, dtype=np.float64)
    return array, np.ones(array.shape) if weights is None else np.asarray(weights, dtype=np.float64)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
