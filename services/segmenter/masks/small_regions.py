"""Holes and islands of masks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from regionsearch.masks import BoolMask, PixelBox, RunLengthMask, mask_box


def remove_small_parts(
    runs: RunLengthMask, box: PixelBox, min_area: int
) -> tuple[RunLengthMask, PixelBox] | None:
    """Fills holes and then removes islands of fewer than `min_area` pixels.

    The result is that of ``segment_anything.utils.amg.remove_small_regions`` on the whole image, but only
    the box and a margin around it are searched.

    Args:
        runs: The mask.
        box: Around the mask, inclusive edges (left, top, right, bottom).
        min_area: Pixels, at least 1. The largest island stays even when it is smaller.

    Returns:
        The changed mask and its box, or None when there was nothing to change.
    """
    height, width = runs.size
    top, bottom, left, right = _margin(box, runs.size, min_area)
    window = runs.window(top, bottom, left, right)
    # Background that goes on beyond the window is not a hole.
    open_edges = (top > 0, bottom < height, left > 0, right < width)
    filled = _fill_holes(window, min_area, open_edges)
    result = _drop_islands(filled, min_area)
    if result is window:
        return None
    bounds = mask_box(result)
    x_min, y_min, x_max, y_max = (int(edge) for edge in bounds) if bounds else (0, 0, 1, 1)
    box = (left + x_min, top + y_min, left + x_max - 1, top + y_max - 1) if bounds else (0, 0, 0, 0)
    return RunLengthMask.from_windows(runs.size, [(result, top, left)]), box


def _margin(box: PixelBox, size: tuple[int, int], min_area: int) -> tuple[int, int, int, int]:
    """A window around the box with a ring of background, such that nothing small lies beyond it."""
    height, width = size
    left, top, right, bottom = box
    # OpenCV numbers components in blocks of 2 x 2 pixels; even offsets keep its order.
    top, left = max(0, top - 1) // 2 * 2, max(0, left - 1) // 2 * 2
    bottom, right = min(height, bottom + 2), min(width, right + 2)
    # A strip smaller than min_area might be a hole itself, where the mask cuts it off.
    top = 0 if top * width < min_area else top
    bottom = height if (height - bottom) * width < min_area else bottom
    left = 0 if left * (bottom - top) < min_area else left
    right = width if (width - right) * (bottom - top) < min_area else right
    return top, bottom, left, right


def _components(mask: BoolMask) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels of the 8-connected components, and the area of each without the background's."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels, stats[1:, cv2.CC_STAT_AREA]


def _fill_holes(mask: BoolMask, min_area: int, open_edges: tuple[bool, bool, bool, bool]) -> BoolMask:
    labels, areas = _components(~mask)
    small = np.concatenate(([True], areas < min_area))  # label 0 is the mask itself
    for is_open, edge in zip(open_edges, (labels[0], labels[-1], labels[:, 0], labels[:, -1]), strict=True):
        if is_open:
            small[edge[edge > 0]] = False
    return np.asarray(small[labels], dtype=np.bool_) if small[1:].any() else mask


def _drop_islands(mask: BoolMask, min_area: int) -> BoolMask:
    labels, areas = _components(mask)
    large = np.concatenate(([False], areas >= min_area))
    if large[1:].all():
        return mask
    if not large.any():
        large[1 + int(np.argmax(areas))] = True
    return np.asarray(large[labels], dtype=np.bool_)
