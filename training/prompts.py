"""Prompts for things, drawn at random from their masks: clicks, boxes, several points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def choose_things(
    rng: np.random.Generator, labels: npt.NDArray[np.uint8], count: int
) -> npt.NDArray[np.uint8]:
    """Labels of ``count`` things, different ones as far as there are enough; 0 where there is none."""
    present = np.unique(labels)
    present = present[present > 0]
    if not len(present):
        return np.zeros(count, np.uint8)
    return rng.permutation(np.resize(rng.permutation(present), count)).astype(np.uint8)


def any_pixel(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """X and y of a random pixel of the mask; the image's middle when the mask is empty."""
    places = np.flatnonzero(mask)
    if not len(places):
        return np.array([mask.shape[1] / 2, mask.shape[0] / 2], np.float32)
    y, x = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    return np.array([x, y], np.float32)


def inner_pixel(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """A pixel away from the outline: the one, of several random ones, with most of the mask around it."""
    summed = np.pad(mask.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tries = np.stack([any_pixel(rng, mask) for _ in range(32)])
    y, x = tries[:, 1].astype(int), tries[:, 0].astype(int)
    y0, y1 = (y - 6).clip(0), (y + 7).clip(max=mask.shape[0])
    x0, x1 = (x - 6).clip(0), (x + 7).clip(max=mask.shape[1])
    around = summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0]
    best: npt.NDArray[np.float32] = tries[around.argmax()]
    return best


def jittered_box(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """x_min, y_min, x_max, y_max around a mask, a little off as a drawn box is."""
    box = mask_box(mask)
    spread = 0.05 * np.tile(box[2:] - box[:2], 2) + 1
    off = rng.normal(0, 1, 4).clip(-2, 2) * spread * rng.choice([0.2, 1.0])
    moved: npt.NDArray[np.float32] = (box + off).astype(np.float32)
    return moved


def several_points(
    rng: np.random.Generator,
    outlines: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_],
    inside: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Two to four points, the first on the thing, the others on it or near it but off it."""
    count = int(rng.integers(2, 5))
    points, point_labels = [], []
    for outline, real in zip(outlines, inside, strict=True):
        on = np.r_[True, rng.random(count - 1) < 0.6]
        x0, y0, x1, y1 = mask_box(outline).astype(int)
        near = np.zeros_like(outline)
        near[max(0, y0 - 20) : y1 + 20, max(0, x0 - 20) : x1 + 20] = True
        around = near & real & ~outline
        points.append(np.stack([any_pixel(rng, outline if mark else around) for mark in on]))
        point_labels.append(on.astype(np.float32))
    return np.stack(points), np.stack(point_labels)


def mask_box(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """x_min, y_min, x_max, y_max, half-open; the whole image when the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.array([0, 0, mask.shape[1], mask.shape[0]], np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
