"""Masks in full resolution: how stable they are, where they lie, which pixels they have.

A mask is looked at in its window only, and a large window strip by strip: memory does not grow with the
picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from regionsearch.masks import BoolMask
from services.segmenter.backends.base import Size
from services.segmenter.cleaning import Box
from services.segmenter.grid import Crop
from services.segmenter.runs import Runs
from services.segmenter.upscale import Patch, Upscaler, Window

# Pixels that are evaluated at once. Full-resolution values live no longer than one such strip.
STRIP_PIXELS = 1 << 21


def measure(
    upscaler: Upscaler, logits: Tensor, threshold: float, offset: float
) -> Iterator[tuple[np.float32, Box | None]]:
    """Stability score and box, with inclusive edges, of masks given as low-resolution logits (n, h, w).

    The box of an empty mask is None; its score is NaN when it stays empty at the lowered threshold.
    """
    for mask, window in zip(logits, upscaler.support(logits, threshold - offset), strict=True):
        inner = outer = 0
        boxes: list[Box] = []
        patch = upscaler.cut(mask, window) if window.area else None
        for strip in window.strips(STRIP_PIXELS):
            assert patch is not None
            values = upscaler.evaluate(patch, strip).cpu().numpy()
            inner += int(np.count_nonzero(values > threshold + offset))
            outer += int(np.count_nonzero(values > threshold - offset))
            boxes += _bounds(values > threshold, strip)
        # Single precision, as the reference divides.
        with np.errstate(invalid="ignore"):
            stability = np.float32(inner) / np.float32(outer)
        edges = np.array(boxes)
        box = (*edges[:, :2].min(0).tolist(), *edges[:, 2:].max(0).tolist()) if boxes else None
        yield stability, box


def _bounds(mask: BoolMask, window: Window) -> list[Box]:
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return []
    rows = np.flatnonzero(mask.any(axis=1))
    left, top = window.left, window.top
    return [(left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]), top + int(rows[-1]))]


def box_window(box: Box) -> Window:
    """The window that a box with inclusive edges covers."""
    left, top, right, bottom = box
    return Window(top, bottom + 1, left, right + 1)


def draw(
    upscaler: Upscaler, patch: Patch | None, box: Box, threshold: float, crop: Crop, image_size: Size
) -> Runs:
    """The mask of a patch inside its box (pixels of the crop), in the whole picture; no patch, no pixels."""
    strips = box_window(box).strips(STRIP_PIXELS) if patch else ()
    return Runs.from_windows(
        image_size,
        (
            (
                (upscaler.evaluate(patch, strip) > threshold).cpu().numpy(),
                strip.top + crop.top,
                strip.left + crop.left,
            )
            for strip in strips
            if patch
        ),
    )
