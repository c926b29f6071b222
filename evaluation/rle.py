"""Masks as COCO run lengths: a thousand of them fit in memory, and their overlaps need no pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from regionsearch.masks import CocoRle

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
Rle = CocoRle


def encode(mask: BoolArray) -> Rle:
    """Packs a bool mask (H, W)."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"]}


def decode(rle: Rle) -> BoolArray:
    """Unpacks to bool (H, W)."""
    return np.asarray(coco.decode(rle), dtype=bool)


def rectangle(height: int, width: int, box: Sequence[float]) -> Rle:
    """A filled box x_min, y_min, x_max, y_max (half-open pixels) on an empty mask (height, width)."""
    x_min, y_min, x_max, y_max = (round(edge) for edge in box)
    mask = np.zeros((height, width), dtype=bool)
    mask[max(y_min, 0) : max(y_max, 0), max(x_min, 0) : max(x_max, 0)] = True
    return encode(mask)


def area(rle: Rle) -> int:
    """Pixels in the mask."""
    return int(coco.area(rle))


def union(rles: Sequence[Rle]) -> Rle:
    """All pixels of any of the masks, of which there is at least one."""
    merged = coco.merge(list(rles))
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"]}


def iou(first: Sequence[Rle], second: Sequence[Rle]) -> FloatArray:
    """Intersection over union of every pair, (len(first), len(second)); all masks have one size."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.asarray(coco.iou(list(first), list(second), [0] * len(second)), dtype=np.float64)


def paired_iou(first: Sequence[Rle], second: Sequence[Rle]) -> FloatArray:
    """Intersection over union of first[i] with second[i]."""
    return np.array([iou([a], [b])[0, 0] for a, b in zip(first, second, strict=True)])


def innermost_point(mask: BoolArray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from everything outside, where a careful user would click.

    Exact Euclidean distance, rows first, then columns; ties go to the topmost, then leftmost pixel. The
    border of the image counts as outside.

    Raises:
        ValueError: The mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no innermost point")
    top, left = rows[0], columns[0]
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    in_row = np.minimum(_steps_from_outside(inside), _steps_from_outside(inside[:, ::-1])[:, ::-1])
    offset = np.arange(len(inside))
    squared = np.empty(inside.shape)
    for y in offset:
        squared[y] = (in_row.astype(np.float64) ** 2 + ((offset - y) ** 2)[:, None]).min(axis=0)
    y, x = np.unravel_index(np.where(inside, squared, -1).argmax(), inside.shape)
    return int(x + left - 1), int(y + top - 1)


def _steps_from_outside(inside: BoolArray) -> NDArray[np.intp]:
    """For each pixel, the columns since the last one outside, itself included (the padding is outside)."""
    column = np.broadcast_to(np.arange(inside.shape[1]), inside.shape)
    steps: NDArray[np.intp] = column - np.maximum.accumulate(np.where(inside, 0, column), axis=1)
    return steps
