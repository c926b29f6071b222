"""Masks at full resolution: stability scores, boxes and pixels of many masks at once; removal of small parts.

Each mask is evaluated in its window only. Windows of similar size share a pass over the pixels, and a window
too large for one pass takes several, so that memory does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.masks import BoolMask, PixelBox, RunLengthMask, mask_box
from services.segmenter.backends.base import Size
from services.segmenter.grid import Crop
from services.segmenter.upscale import Indices, Tile, Upscaler, extent


@dataclass(frozen=True)
class PassCost:
    """How windows are gathered into passes on one type of device.

    Attributes:
        pixels: Number of pixels per pass. Full-resolution values live only as long as their pass.
        overhead: The cost of starting a pass, in pixels: wasting fewer to save a pass pays off.
    """

    pixels: int
    overhead: int


# On a CPU a pass fits the cache. On a GPU it starts some fifty kernels, a fraction of a millisecond.
PASSES = {"cpu": PassCost(1 << 19, 1 << 15), "cuda": PassCost(1 << 26, 1 << 25)}


@dataclass(frozen=True)
class Measured:
    """Measurements of masks at full resolution.

    Attributes:
        stability: float32 (n,); NaN for a mask that stays empty at the lowered threshold.
        boxes: int64 (n, 4) as left, top, right, bottom, inclusive; zeros for an empty mask.
        empty: bool (n,); the mask does not have a pixel.
    """

    stability: NDArray[np.float32]
    boxes: Indices
    empty: NDArray[np.bool_]


def measure(
    upscaler: Upscaler, logits: Tensor, threshold: float, offset: float, limits: Indices | None = None
) -> Measured:
    """Measures masks, with two copies to the host regardless of their number.

    Args:
        upscaler: The upscaler for their geometry.
        logits: Low-resolution masks (n, h, w).
        threshold: Logit above which a pixel belongs to the mask.
        offset: How far the threshold is raised and lowered for the stability score.
        limits: See `DecodedMasks`.
    """
    windows = upscaler.support(logits, threshold - offset)
    if limits is not None:
        windows[:, ::2] = np.maximum(windows[:, ::2], limits[:, ::2])
        windows[:, 1::2] = np.minimum(windows[:, 1::2], limits[:, 1::2])
    tiles = list(plan_tiles(windows, upscaler.size, PASSES[logits.device.type], limits is not None))
    count = count_on_host if on_host(logits) else count_on_device
    found = [count(upscaler.evaluate(logits, tile), threshold, offset) for tile in tiles]
    if found and not on_host(logits):
        packed = torch.cat([part.flatten() for part in found]).cpu()
        ends = np.cumsum([part.numel() for part in found]).tolist()
        found = [
            packed[end - part.numel() : end].view(part.shape) for part, end in zip(found, ends, strict=True)
        ]
    inner, outer = np.zeros(len(logits), np.int64), np.zeros(len(logits), np.int64)
    low = np.full((len(logits), 2), np.iinfo(np.int64).max)
    high = np.full((len(logits), 2), -1)
    for tile, part in zip(tiles, found, strict=True):
        counts, columns, rows = np.split(part.numpy(), [16, 16 + tile.width], axis=1)
        raised, lowered = counts.view(np.int64).T
        np.add.at(inner, tile.masks, raised)
        np.add.at(outer, tile.masks, lowered)
        filled = rows.any(axis=1)
        masks, corner = tile.masks[filled], np.stack([tile.lefts, tile.tops], axis=1)[filled]
        first, last = np.stack([extent(columns[filled]), extent(rows[filled])], axis=2)
        np.minimum.at(low, masks, corner + first)
        np.maximum.at(high, masks, corner + last)
    # Single precision, as the reference divides.
    with np.errstate(invalid="ignore"):
        stability: NDArray[np.float32] = np.divide(inner.astype(np.float32), outer.astype(np.float32))
    boxes, empty = np.concatenate([low, high], axis=1), high[:, 0] < 0
    return Measured(stability, np.where(empty[:, None], 0, boxes), empty)


def count_on_host(values: Tensor, threshold: float, offset: float) -> Tensor:
    """As `count_on_device`, with NumPy, which is ten times as fast as torch on a CPU."""
    _, height, width = values.shape
    counted = np.empty((len(values), 16 + width + height), np.uint8)
    for row, host in zip(counted, values.numpy(), strict=True):
        mask = host > threshold
        row[:16].view(np.int64)[:] = (
            np.count_nonzero(host > threshold + offset),
            np.count_nonzero(host > threshold - offset),
        )
        np.any(mask, axis=0, out=row[16 : 16 + width].view(np.bool_))
        np.any(mask, axis=1, out=row[16 + width :].view(np.bool_))
    return torch.from_numpy(counted)


def count_on_device(values: Tensor, threshold: float, offset: float) -> Tensor:
    """Counts and edges of masks with full-resolution values (n, h, w), as bytes, ready for one copy.

    Returns:
        uint8 (n, 16 + w + h): two int64, the pixels above the raised and above the lowered threshold, then
        which columns and which rows have a pixel of the mask.
    """
    counts = [(values > limit).sum(dim=(1, 2)) for limit in (threshold + offset, threshold - offset)]
    mask = values > threshold
    edges = torch.cat([mask.any(dim=1), mask.any(dim=2)], dim=1)
    return torch.cat([torch.stack(counts, dim=1).view(torch.uint8), edges.view(torch.uint8)], dim=1)


def plan_tiles(windows: Indices, size: Size, cost: PassCost, clip: bool = False) -> Iterator[Tile]:
    """Gathers windows into tiles.

    All windows of a tile get the size of the largest one, shifted to stay inside the image. A larger window
    is harmless: a mask has no pixel outside of its own one, unless `clip` is set, which blanks them.

    Args:
        windows: (n, 4) as top, bottom, left, right, half-open; empty ones are left out.
        size: (height, width) of the image.
        cost: The cost of a pass on this device.
        clip: Blanks what a tile shows outside of a mask's own window.
    """
    limits = windows if clip else None
    heights, widths = windows[:, 1] - windows[:, 0], windows[:, 3] - windows[:, 2]
    (filled,) = ((heights > 0) & (widths > 0)).nonzero()
    octaves = np.ceil(2 * np.log2(np.maximum(1, heights[filled])))
    gathered: list[int] = []
    height = width = 0
    for mask in filled[np.lexsort((widths[filled], octaves))].tolist():
        tall, wide = int(heights[mask]), int(widths[mask])
        if gathered:
            common = max(height, tall) * max(width, wide) * (len(gathered) + 1)
            apart = height * width * len(gathered) + tall * wide
            if common > cost.pixels or common - apart > cost.overhead:
                yield from _tiles(gathered, windows, size, height, width, cost.pixels, limits)
                gathered, height, width = [], 0, 0
        gathered.append(mask)
        height, width = max(height, tall), max(width, wide)
    if gathered:
        yield from _tiles(gathered, windows, size, height, width, cost.pixels, limits)


def _tiles(
    gathered: list[int],
    windows: Indices,
    size: Size,
    height: int,
    width: int,
    max_pixels: int,
    limits: Indices | None,
) -> Iterator[Tile]:
    """One tile, or vertical strips of a single window that has too many pixels, from left to right."""
    masks = np.array(gathered)
    tops, lefts = (
        np.minimum(windows[masks, 2 * axis], size[axis] - (height, width)[axis]) for axis in (0, 1)
    )
    columns = max(1, max_pixels // height) if len(gathered) == 1 else width
    limits = None if limits is None else limits[masks]
    for start in range(0, width, columns):
        yield Tile(masks, tops, lefts + start, height, min(columns, width - start), limits)


def draw(
    upscaler: Upscaler,
    logits: Tensor,
    boxes: Indices,
    threshold: float,
    crop: Crop,
    image_size: Size,
    clip: bool = False,
) -> list[RunLengthMask]:
    """Draws masks into the whole image, as run lengths.

    Args:
        upscaler: The upscaler for the crop's geometry.
        logits: Low-resolution masks (n, h, w).
        boxes: The masks' boxes in pixels of the crop, inclusive edges (n, 4).
        threshold: Logit above which a pixel belongs to the mask.
        crop: The crop.
        image_size: (height, width) of the whole image.
        clip: Drop what lies outside of a mask's box.
    """
    windows = boxes[:, [1, 3, 0, 2]] + np.array([0, 1, 0, 1])
    runs: list[list[Indices]] = [[] for _ in boxes]
    for tile in plan_tiles(windows, upscaler.size, PASSES[logits.device.type], clip):
        inside = upscaler.evaluate(logits, tile) > threshold
        # Column by column; a row of zeros above and below separates the columns.
        columns = torch.nn.functional.pad(inside.transpose(1, 2), (1, 1)).flatten()
        changes = _nonzero(columns[1:] != columns[:-1])
        column, row = np.divmod(changes, tile.height + 2)
        window, column = np.divmod(column, tile.width)
        places = (
            (tile.lefts[window] + crop.left + column) * image_size[0] + tile.tops[window] + crop.top + row
        )
        ends = np.searchsorted(window, np.arange(len(tile.masks)), "right")
        for mask, part in zip(tile.masks.tolist(), np.split(places, ends[:-1]), strict=True):
            runs[mask].append(part)
    return [
        RunLengthMask.from_edges(image_size, np.concatenate(parts) if parts else np.empty(0, np.int64))
        for parts in runs
    ]


def _nonzero(flags: Tensor) -> Indices:
    return np.flatnonzero(flags.numpy()) if on_host(flags) else flags.nonzero()[:, 0].cpu().numpy()


def on_host(values: Tensor) -> bool:
    """Whether NumPy can look at values without a copy."""
    return values.device.type == "cpu"


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
    # Background that continues beyond the window is not a hole.
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
