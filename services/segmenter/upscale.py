"""Upscales low-resolution logits to pixels, many masks at once.

``Sam.postprocess_masks`` resizes every mask to the whole image, twice. Most of that is background: bilinear
interpolation stays between the values it mixes, so where no logit nearby exceeds a threshold no pixel does.
Here a mask is evaluated only in the window that matters, together with other masks whose windows are given
the same size, in a number of operations that does not depend on the number of masks.

Pixels have the values that ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` gives
them: the same taps, weights and order of operations.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.segmenter.backends.base import ResizeStep, Size
from services.torch_runtime.devices import to_device

Indices = NDArray[np.int64]

# Rounding may lift an interpolated value this far above those it mixes, relative to their size.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Tile:
    """Windows of one shape in several masks, evaluated together.

    Attributes:
        masks: Which mask each window belongs to, int64 (n,).
        tops: First row of each window, int64 (n,).
        lefts: First column of each window, int64 (n,).
        height: Rows of every window.
        width: Columns of every window.
        limits: Outside of these limits a window is -inf; int64 (n, 4) as top, bottom, left, right, half-open.
            None for no limits.
    """

    masks: Indices
    tops: Indices
    lefts: Indices
    height: int
    width: int
    limits: Indices | None = None

    def outside(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows (n, height) and which columns (n, width) of its windows lie outside of the limits."""
        assert self.limits is not None
        rows = self.tops[:, None] + np.arange(self.height)
        columns = self.lefts[:, None] + np.arange(self.width)
        top, bottom, left, right = self.limits.T[..., None]
        return (rows < top) | (rows >= bottom), (columns < left) | (columns >= right)


@dataclass(frozen=True)
class _Pass:
    """A resizing step for the windows of a tile: outputs [start, start + length) of inputs [begin, …)."""

    taps: Tensor
    weights: Tensor
    starts: Indices
    length: int
    begins: Indices
    span: int


class _Axis:
    """Interpolation along one axis through all steps."""

    def __init__(self, size: int, targets: list[tuple[int, int, int]], device: torch.device) -> None:
        self.size = size
        # Of the steps that change the size: the size before, the taps on the host, and taps (2, outputs) and
        # weights (2, outputs) of the lower and the upper neighbour on the device.
        self._steps: list[tuple[int, Indices, Indices, Tensor, Tensor]] = []
        first = last = np.arange(size)
        for target, crop, corner in targets:
            if target == size and corner == 0:
                first, last = first[:crop], last[:crop]
            else:
                low, high, weight = _taps(size, target, corner, crop)
                first, last = first[low], last[high]
                taps = torch.from_numpy(np.stack([low, high])).to(device)
                weights = torch.from_numpy(np.stack([1 - weight, weight])).to(device)
                self._steps.append((size, low, high, taps, weights))
            size = crop
        self.outputs = size
        # First and last source index that each output depends on; both ascend.
        self._first, self._last = first, last

    def reach(self, first: Indices, last: Indices) -> tuple[Indices, Indices]:
        """The ranges of outputs that depend on any of the sources first to last."""
        starts = np.searchsorted(self._last, first, "left")
        return starts, np.searchsorted(self._first, last, "right")

    def plan(self, starts: Indices, length: int) -> tuple[list[_Pass], Indices, int]:
        """The steps for outputs [start, start + length) each, and the range of sources that they need."""
        passes: list[_Pass] = []
        for size, low, high, taps, weights in reversed(self._steps):
            begins = low[starts]
            span = int((high[starts + length - 1] + 1 - begins).max())
            begins = np.minimum(begins, size - span)
            passes.append(_Pass(taps, weights, starts, length, begins, span))
            starts, length = begins, span
        return passes[::-1], starts, length


def _taps(size: int, target: int, start: int, count: int) -> tuple[Indices, Indices, NDArray[np.float32]]:
    """Taps of torch's resizing of an axis from `size` to `target`, for `count` positions from `start` on."""
    half = np.float32(0.5)
    scale = np.float32(size) / np.float32(target)
    position = (scale * (np.arange(start, start + count, dtype=np.float32) + half) - half).clip(min=0)
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.clip(position - low.astype(np.float32), 0, 1).astype(np.float32)
    return low, high, weight


class Upscaler:
    """Evaluates masks of one geometry at full resolution.

    Args:
        mask_size: (height, width) of the low-resolution logits.
        steps: The resizing steps from logits to pixels.
        device: The device of the logits.
    """

    def __init__(self, mask_size: Size, steps: tuple[ResizeStep, ...], device: torch.device) -> None:
        self._rows, self._columns = (
            _Axis(mask_size[axis], [(s.size[axis], s.crop[axis], s.corner[axis]) for s in steps], device)
            for axis in (0, 1)
        )
        self._device = device
        self._counting = torch.arange(max(*mask_size, *(max(step.size) for step in steps)), device=device)
        self.size: Size = self._rows.outputs, self._columns.outputs

    def support(self, logits: Tensor, threshold: float) -> Indices:
        """Windows outside of which no pixel of a mask exceeds `threshold`; one copy to the host.

        Args:
            logits: (n, h, w).
            threshold: The logit.

        Returns:
            int64 (n, 4), for each mask top, bottom, left, right, half-open; zeros if nothing exceeds the
            threshold.
        """
        highest = torch.cat([logits.amax(dim=2), logits.amax(dim=1)], dim=1)
        edges = (highest > threshold - _ROUNDING * max(1.0, abs(threshold))).cpu().numpy()
        rows, columns = np.split(edges, [logits.shape[1]], axis=1)
        (top, bottom), (left, right) = self._rows.reach(*extent(rows)), self._columns.reach(*extent(columns))
        return np.stack([top, bottom, left, right], axis=1) * rows.any(axis=1, keepdims=True)

    def evaluate(self, logits: Tensor, tile: Tile) -> Tensor:
        """Logits at full resolution, float32 (windows, tile height, tile width).

        Args:
            logits: Low-resolution masks (n, h, w), contiguous.
            tile: Windows in them.
        """
        rows, top, height = self._rows.plan(tile.tops, tile.height)
        columns, left, width = self._columns.plan(tile.lefts, tile.width)
        numbers = np.arange(len(tile.masks))
        # Where each gathering begins, all in one copy to the device: of the masks' rows and columns, then of
        # each pass. Rows are addressed as rows of all masks together.
        begins = [tile.masks * logits.shape[1] + top, left]
        begins += [part for each in columns for part in (each.starts, -each.begins)]
        begins += [part for each in rows for part in (each.starts, numbers * each.span - each.begins)]
        places = iter(to_device(torch.from_numpy(np.stack(begins)), self._device)[..., None])

        picked = (next(places) + self._counting[:height]).flatten()
        values = logits.flatten(0, 1).index_select(0, picked).view(len(numbers), height, -1)
        picked = next(places) + self._counting[:width]
        values = values.gather(2, picked[:, None].expand(-1, height, -1))
        across = [(each, next(places), next(places)) for each in columns]
        down = [(each, next(places), next(places)) for each in rows]
        for index in range(max(len(across), len(down))):
            if index < len(across):
                taps, weights = self._neighbours(*across[index])
                low, high = (part[:, None].expand(-1, values.shape[1], -1) for part in taps)
                values = _mix(values.gather(2, low), values.gather(2, high), weights[:, :, None])
            if index < len(down):
                taps, weights = self._neighbours(*down[index])
                flat, shape = values.flatten(0, 1), (*taps.shape[1:], values.shape[2])
                low, high = (flat.index_select(0, part.flatten()).view(shape) for part in taps)
                values = _mix(low, high, weights[..., None])
        if tile.limits is not None:
            for flags, axis in zip(tile.outside(), (2, 1), strict=True):
                values.masked_fill_(
                    to_device(torch.from_numpy(flags), self._device).unsqueeze(axis), -torch.inf
                )
        return values

    def _neighbours(self, step: _Pass, starts: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Shifted taps and weights of both neighbours of each output, (2, windows, outputs)."""
        outputs = starts + self._counting[: step.length]
        taps, weights = (part.index_select(1, outputs.flatten()) for part in (step.taps, step.weights))
        return taps.view(2, *outputs.shape) + shift, weights.view(2, *outputs.shape)


@functools.lru_cache(maxsize=64)
def upscaler_for(mask_size: Size, steps: tuple[ResizeStep, ...], device: torch.device) -> Upscaler:
    """The upscaler of a geometry; its tables are uploaded once for all that have this geometry."""
    return Upscaler(mask_size, steps, device)


def extent(flags: NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """Of each row of `flags` (n, length) the first and the last place that is set; any where none is."""
    return flags.argmax(axis=1), flags.shape[1] - 1 - flags[:, ::-1].argmax(axis=1)


def _mix(low: Tensor, high: Tensor, weights: Tensor) -> Tensor:
    # The lower neighbour last, in a fused multiply-add: so does torch, to the last bit.
    return high.mul_(weights[1]).addcmul_(low, weights[0])
