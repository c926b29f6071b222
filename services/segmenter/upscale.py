"""Low-resolution logits to pixels, in windows.

``Sam.postprocess_masks`` blows every mask up to the whole image, twice. Most of that is background:
bilinear interpolation stays between the values it mixes, so where no logit nearby exceeds a threshold no
pixel does. Here a mask is evaluated only in the window that matters, and a window too large for memory in
vertical strips.

Pixels have the values that ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` gives
them: the same taps, weights and order of operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.segmenter.backends.base import ResizeStep, Size

# Rounding may lift an interpolated value this far above those it mixes, relative to their size.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Window:
    """A half-open range of rows and columns."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def strips(self, max_pixels: int) -> Iterator[Window]:
        """Cuts the window into ranges of columns with at most `max_pixels` each, or one column."""
        if self.area == 0:  # may be empty along one axis only, where a tiny image skips the mask's rows
            return
        columns = max(1, max_pixels // (self.bottom - self.top))
        for left in range(self.left, self.right, columns):
            yield Window(self.top, self.bottom, left, min(left + columns, self.right))


@dataclass(frozen=True)
class Patch:
    """The part of a low-resolution mask that a window needs.

    Attributes:
        values: Logits (h, w).
        top: Row of the mask that `values` begin with.
        left: Column of the mask that `values` begin with.
    """

    values: Tensor
    top: int
    left: int


class _Axis:
    """Interpolation along one axis through all steps."""

    def __init__(self, size: int, targets: list[tuple[int, int]], device: torch.device) -> None:
        # Of the steps that change the size: the taps, once for planning and once for computing.
        self._steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._taps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        first = last = np.arange(size)
        for target, crop in targets:
            if target == size:
                first, last = first[:crop], last[:crop]
            else:
                low, high, weight = _taps(size, target, crop)
                first, last = first[low], last[high]
                taps = (torch.from_numpy(part).to(device) for part in (low, high, 1 - weight, weight))
                self._steps.append((low, high))
                self._taps.append((next(taps), next(taps), next(taps), next(taps)))
            size = crop
        # First and last source index that each output depends on; both ascend.
        self._first, self._last = first, last

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The range of sources that outputs [start, stop) depend on."""
        return int(self._first[start]), int(self._last[stop - 1]) + 1

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The range of outputs that depend on any of the sources first to last."""
        start = int(np.searchsorted(self._last, first, "left"))
        return start, int(np.searchsorted(self._first, last, "right"))

    def plan(self, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Taps of every step, relative to the part of its input that outputs [start, stop) need."""
        plan: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for (low, high), taps in zip(reversed(self._steps), reversed(self._taps), strict=True):
            begin, end = int(low[start]), int(high[stop - 1]) + 1
            low_taps, high_taps, low_weight, high_weight = (part[start:stop] for part in taps)
            plan.append((low_taps - begin, high_taps - begin, low_weight, high_weight))
            start, stop = begin, end
        return plan[::-1]


def _taps(
    size: int, target: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Taps that torch uses to resize an axis from `size` to `target`, for the first `count` positions."""
    half = np.float32(0.5)
    scale = np.float32(size) / np.float32(target)
    position = (scale * (np.arange(count, dtype=np.float32) + half) - half).clip(min=0)
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.clip(position - low.astype(np.float32), 0, 1).astype(np.float32)
    return low, high, weight


class Upscaler:
    """Evaluates masks of one geometry at full resolution.

    Args:
        mask_size: Of the low-resolution logits.
        steps: How they become pixels.
        device: Where the logits are.
    """

    def __init__(self, mask_size: Size, steps: tuple[ResizeStep, ...], device: torch.device) -> None:
        self._rows = _Axis(mask_size[0], [(step.size[0], step.crop[0]) for step in steps], device)
        self._columns = _Axis(mask_size[1], [(step.size[1], step.crop[1]) for step in steps], device)

    def support(self, logits: Tensor, threshold: float) -> list[Window]:
        """Windows outside of which no pixel of a mask exceeds `threshold`.

        Args:
            logits: (n, h, w).
            threshold: Of the logits.

        Returns:
            One window a mask; of area 0 where nothing exceeds the threshold.
        """
        active = logits > threshold - _ROUNDING * max(1.0, abs(threshold))
        rows = active.any(dim=2).cpu().numpy()
        columns = active.any(dim=1).cpu().numpy()
        return [self._reach(row, column) for row, column in zip(rows, columns, strict=True)]

    def _reach(self, rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> Window:
        (active_rows,), (active_columns,) = rows.nonzero(), columns.nonzero()
        if active_rows.size == 0:
            return Window(0, 0, 0, 0)
        top, bottom = self._rows.reach(int(active_rows[0]), int(active_rows[-1]))
        left, right = self._columns.reach(int(active_columns[0]), int(active_columns[-1]))
        return Window(top, bottom, left, right)

    def cut(self, logits: Tensor, window: Window) -> Patch:
        """Copies what :meth:`evaluate` needs for `window` out of low-resolution logits (h, w)."""
        top, bottom = self._rows.source(window.top, window.bottom)
        left, right = self._columns.source(window.left, window.right)
        return Patch(logits[top:bottom, left:right].clone(), top, left)

    def evaluate(self, patch: Patch, window: Window) -> Tensor:
        """Logits at full resolution, float32 (window height, window width)."""
        top, bottom = self._rows.source(window.top, window.bottom)
        left, right = self._columns.source(window.left, window.right)
        values = patch.values[top - patch.top : bottom - patch.top, left - patch.left : right - patch.left]
        rows = self._rows.plan(window.top, window.bottom)
        columns = self._columns.plan(window.left, window.right)
        for index in range(max(len(rows), len(columns))):
            if index < len(columns):
                values = _mix(values, 1, *columns[index])
            if index < len(rows):
                values = _mix(values, 0, *rows[index])
        return values


def _mix(
    values: Tensor, axis: int, low: Tensor, high: Tensor, low_weight: Tensor, high_weight: Tensor
) -> Tensor:
    if axis == 0:
        low_weight, high_weight = low_weight[:, None], high_weight[:, None]
    # The lower tap last, in a fused multiply-add: so does torch, to the last bit.
    mixed = values.index_select(axis, high).mul_(high_weight)
    return mixed.addcmul_(values.index_select(axis, low), low_weight)
