"""Points and boxes: the one rule for them, and which of an image's stored regions they mean.

Masks are COCO run-length strings, as they are stored. None is ever drawn: whether a pixel lies in a mask is
a search among its runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

from regionsearch.errors import invalid
from regionsearch.masks import RunLengthMask, Size, rle_runs
from regionsearch.v1 import types_pb2

Edges = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max

POINT_TOLERANCE = 1.0  # pixels that a point may lie outside: rounding, and the last row of a scaled view


def check_point(point: Sequence[float], size: Size, field: str) -> None:
    """Refuses a point (x, y) that is not on the image; NaN is nowhere.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the image's size.
    """
    height, width = size
    x, y = point
    most = POINT_TOLERANCE
    if not (-most <= x <= width + most and -most <= y <= height + most):
        raise invalid(
            field,
            f"{field} is ({x:g}, {y:g}), which lies outside of the image of {width} x {height} "
            "pixels (after EXIF orientation)",
        )


def read_box(box: types_pb2.Box, field: str) -> Edges:
    """The edges of a box.

    Raises:
        RegionSearchError: INVALID_ARGUMENT where one is not finite, or there is nothing between them.
    """
    edges = (box.x_min, box.y_min, box.x_max, box.y_max)
    if not all(math.isfinite(edge) for edge in edges):
        raise invalid(field, f"{field} has an edge that is not a finite number")
    if box.x_min >= box.x_max or box.y_min >= box.y_max:
        raise invalid(field, f"{field} is empty: x_min < x_max and y_min < y_max are needed, in pixels")
    return edges


def check_box(edges: Edges, size: Size, field: str) -> None:
    """Refuses a box of which no part is on the image; one that is partly outside is clipped by its reader.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the image's size.
    """
    height, width = size
    x_min, y_min, x_max, y_max = edges
    if x_min >= width or y_min >= height or x_max <= 0 or y_max <= 0:
        raise invalid(
            field,
            f"{field} lies outside of the image of {width} x {height} pixels (after EXIF orientation)",
        )


def select_by_prompt(
    masks: Sequence[str],
    boxes: ArrayLike,
    areas: Sequence[int],
    size: Size,
    points: ArrayLike,
    labels: ArrayLike,
    box: ArrayLike | None = None,
) -> list[int]:
    """The region that clicks and a drawn box mean together.

    Points pick as in :func:`select_by_points`, among the regions that the box touches when there is one too;
    a box alone picks the region that it fits best.

    Args:
        masks: Compressed COCO counts of the regions.
        boxes: Their half-open boxes, (n, 4) as x_min, y_min, x_max, y_max.
        areas: Pixels of their masks.
        size: (height, width) of the image.
        points: (P, 2) as x, y in pixels.
        labels: (P,); 1 for a point on the object, 0 for one on the background.
        box: The drawn box, in the form of the others.

    Returns:
        Indices of the chosen regions, ascending; several are meant as one object. Empty when nothing fits.

    Raises:
        RegionSearchError: INVALID_ARGUMENT where there are points, and none of them in the foreground.
    """
    if not len(np.asarray(points)):
        best = None if box is None else select_by_box(boxes, areas, box)
        return [] if best is None else [best]
    among = list(range(len(masks))) if box is None else np.flatnonzero(box_iou(boxes, box) > 0).tolist()
    if not among:
        return []
    chosen = select_by_points([masks[index] for index in among], size, points, labels)
    return [among[index] for index in chosen]


def select_by_points(masks: Sequence[str], size: Size, points: ArrayLike, labels: ArrayLike) -> list[int]:
    """The region that clicks mean.

    The smallest region that holds all foreground points and no background point. Where no region holds them
    all, each foreground point picks the smallest region that holds it and no background point, and these
    merge.

    Args:
        masks: Compressed COCO counts of the regions.
        size: (height, width) of the image.
        points: (P, 2) as x, y in pixels.
        labels: (P,); 1 for a point on the object, 0 for one on the background.

    Returns:
        Indices of the chosen regions, ascending; several are meant as one object (see :func:`merge_masks`).
        Empty when nothing fits.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when no point is in the foreground, or a label is neither 0 nor 1.
    """
    marks = np.asarray(labels).reshape(-1)
    if not np.isin(marks, (0, 1)).all():
        raise invalid("points", "points has a label that is neither 1 (it is here) nor 0 (it is not here)")
    foreground = marks == 1
    if not foreground.any():
        raise invalid("points", "points has no foreground point; give at least one with label 1")
    inside, areas = _look_up(masks, size, np.asarray(points, np.float64).reshape(-1, 2))
    refused = inside[:, ~foreground].any(axis=1, keepdims=True)
    holds = inside[:, foreground] & ~refused
    # Among regions of one size the first one, so that the answer does not depend on chance.
    order = np.lexsort((np.arange(len(areas)), areas))
    everything = [int(index) for index in order if holds[index].all()]
    if everything:
        return everything[:1]
    chosen = {next((int(index) for index in order if held[index]), -1) for held in holds.T}
    return sorted(chosen - {-1})


def select_by_box(boxes: ArrayLike, areas: ArrayLike, box: ArrayLike) -> int | None:
    """The region whose box has the highest IoU with a drawn one; of equal ones the one with most pixels.

    Args:
        boxes: Half-open boxes of the regions, (n, 4) as x_min, y_min, x_max, y_max.
        areas: Pixels of the regions' masks, (n,).
        box: The drawn box, in the same form.

    Returns:
        Index of the region, or None when no region overlaps the box.
    """
    overlaps = box_iou(boxes, box)
    if overlaps.size == 0 or overlaps.max() <= 0:
        return None
    return int(np.lexsort((-np.arange(overlaps.size), np.asarray(areas), overlaps))[-1])


def select_by_scores(scores: ArrayLike) -> int | None:
    """The region of the highest score, the first of equal ones; None when there are no regions."""
    values = np.asarray(scores, np.float64)
    return int(values.argmax()) if values.size else None


def box_iou(boxes: ArrayLike, box: ArrayLike) -> NDArray[np.float64]:
    """IoU of each of the boxes (n, 4) with one box (4,); half-open edges; 0 for boxes without area."""
    many, one = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(box, np.float64)
    overlap = np.minimum(many[:, 2:], one[2:]) - np.maximum(many[:, :2], one[:2])
    shared = overlap.clip(min=0).prod(axis=1)
    together = (many[:, 2:] - many[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod() - shared
    result = np.zeros(len(many))
    np.divide(shared, together, out=result, where=together > 0)
    return result


def merge_masks(masks: Sequence[str], size: Size) -> str:
    """The union of masks, as compressed COCO counts."""
    for mask in masks:
        rle_runs(mask, *size)  # pycocotools trusts what it is given
    rles = [{"size": list(size), "counts": mask.encode("ascii")} for mask in masks]
    counts: bytes = coco.merge(rles)["counts"]
    return counts.decode("ascii")


def _look_up(
    masks: Sequence[str], size: Size, points: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each mask holds each point, bool (n, P), and the masks' areas."""
    height, width = size
    pixels = np.floor(points)
    in_image = np.all((pixels >= 0) & (pixels < (width, height)), axis=1)
    columns, rows = np.where(in_image[:, None], pixels, 0).astype(np.int64).T
    inside = np.zeros((len(masks), len(points)), np.bool_)
    areas = np.zeros(len(masks), np.int64)
    for index, mask in enumerate(masks):
        runs = RunLengthMask.from_coco_rle(mask, height, width)
        inside[index] = runs.contains(rows, columns)
        areas[index] = runs.area
    return inside & in_image, areas
