"""Masks in full resolution: stability score, box and pixels.

A mask is evaluated in its window only, and a large window strip by strip, so that memory does not grow with
the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.masks import PixelBox, RunLengthMask
from services.segmenter.backends.base import Size
from services.segmenter.grid import Crop
from services.segmenter.upscale import Patch, Upscaler, Window

# Pixels that are evaluated at once. Full-resolution values live no longer than one such strip.
STRIP_PIXELS = 1 << 21

Measured: TypeAlias = tuple[int, int, NDArray[np.bool_], NDArray[np.bool_]]
"""Pixels above the raised and above the lowered threshold, columns and rows with a pixel of the mask."""


def measure(
    upscaler: Upscaler, logits: Tensor, threshold: float, offset: float
) -> Iterator[tuple[np.float32, PixelBox | None]]:
    """Stability score and box, with inclusive edges, of masks given as low-resolution logits (n, h, w).

    The box of an empty mask is None; its score is NaN when it stays empty at the lowered threshold.
    """
    for mask, window in zip(logits, upscaler.support(logits, threshold - offset), strict=True):
        inner = outer = 0
        boxes: list[PixelBox] = []
        patch = upscaler.cut(mask, window) if window.area else None
        for strip in window.strips(STRIP_PIXELS):
            assert patch is not None
            values = upscaler.evaluate(patch, strip)
            count = count_on_host if values.device.type == "cpu" else count_on_device
            raised, lowered, columns, rows = count(values, threshold, offset)
            inner += raised
            outer += lowered
            boxes += _bounds(columns, rows, strip)
        # Single precision, as the reference divides.
        with np.errstate(invalid="ignore"):
            stability = np.float32(inner) / np.float32(outer)
        edges = np.array(boxes)
        box = (*edges[:, :2].min(0).tolist(), *edges[:, 2:].max(0).tolist()) if boxes else None
        yield stability, box


def count_on_host(values: Tensor, threshold: float, offset: float) -> Measured:
    """Measures full-resolution values (h, w) with NumPy, ten times as fast as torch on a CPU."""
    host = values.numpy()
    mask = host > threshold
    raised, lowered = np.count_nonzero(host > threshold + offset), np.count_nonzero(host > threshold - offset)
    return int(raised), int(lowered), np.any(mask, axis=0), np.any(mask, axis=1)


def count_on_device(values: Tensor, threshold: float, offset: float) -> Measured:
    """Measures values on their device; only counts and edges leave it, in one copy."""
    mask = values > threshold
    counts = [(values > limit).count_nonzero() for limit in (threshold + offset, threshold - offset)]
    found = torch.cat([torch.stack(counts), mask.any(dim=0), mask.any(dim=1)]).cpu().numpy()
    columns, rows = np.split(found[2:] > 0, [values.shape[1]])
    return int(found[0]), int(found[1]), columns, rows


def _bounds(columns: NDArray[np.bool_], rows: NDArray[np.bool_], window: Window) -> list[PixelBox]:
    (inside,), (below,) = columns.nonzero(), rows.nonzero()
    if inside.size == 0:
        return []
    left, top = window.left, window.top
    return [(left + int(inside[0]), top + int(below[0]), left + int(inside[-1]), top + int(below[-1]))]


def box_window(box: PixelBox) -> Window:
    """The window that a box with inclusive edges covers."""
    left, top, right, bottom = box
    return Window(top, bottom + 1, left, right + 1)


def draw(
    upscaler: Upscaler, patch: Patch | None, box: PixelBox, threshold: float, crop: Crop, image_size: Size
) -> RunLengthMask:
    """The mask of a patch inside its box (pixels of the crop), in the whole image; no patch, no pixels."""
    strips = box_window(box).strips(STRIP_PIXELS) if patch else ()
    return RunLengthMask.from_windows(
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
