"""Which window of its image each region is seen in, and how the windows are gathered into few operations.

Decided on the host, before anything is asked of the device. Windows have whole-pixel edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from services.embedder.options import CropPolicy
from services.embedder.resample import groups_by_size

CONTEXT_MARGIN = 1.3  # side of a context window over the long side of its box
CIRCLE_MARGIN = 1.6  # the red ellipse passes through the corners of the box, so that it needs more room
# Small things are seen in up to 3x context, in windows of up to 4/7 of the crop's side (128 px for a model of
# 224): beyond that the surroundings would cost the thing its resolution.
SMALL_MARGIN, SMALL_WINDOW = 3.0, 4 / 7

# The colours, 0..255, of the pixels outside of the object; None for the model's mean.
FILLS: dict[CropPolicy, tuple[float, float, float] | None] = {
    CropPolicy.MASKED_WHITE: (255.0, 255.0, 255.0),
    CropPolicy.MASKED_BLACK: (0.0, 0.0, 0.0),
    CropPolicy.MASKED_MEAN: None,
}


def needs_masks(policy: CropPolicy) -> bool:
    """Whether a policy treats pixels outside of the object in another way."""
    return policy in FILLS or policy is CropPolicy.BLUR


class Window(NamedTuple):
    """Part of the image plane in whole pixels, half-open; may reach beyond the image."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def clip(self, height: int, width: int) -> Window:
        """The part inside an image; empty windows do not occur for boxes that touch the image."""
        return Window(max(self.left, 0), max(self.top, 0), min(self.right, width), min(self.bottom, height))


def pixel_box(box: Sequence[float], height: int, width: int) -> Window:
    """The whole pixels that a box touches, inside the image and at least one pixel in size.

    Args:
        box: x_min, y_min, x_max, y_max in pixels, half-open edges.
        height: Rows of the image.
        width: Columns of the image.
    """
    left = min(max(math.floor(box[0]), 0), width - 1)
    top = min(max(math.floor(box[1]), 0), height - 1)
    right = min(max(math.ceil(box[2]), left + 1), width)
    bottom = min(max(math.ceil(box[3]), top + 1), height)
    return Window(left, top, right, bottom)


def crop_window(box: Window, policy: CropPolicy, height: int, width: int, size: int) -> Window:
    """The window in which a policy shows the object of a box (see :func:`pixel_box`) in a crop of a size.

    Square for every policy but ``bbox``. Where it fits, it is moved inside the image rather than filled; the
    masked policies show only the object, so that theirs stays centred.
    """
    long_side = max(box.width, box.height)
    if policy is CropPolicy.BBOX:
        return box
    if policy in FILLS:
        return _square(box, long_side)
    margin = CIRCLE_MARGIN if policy is CropPolicy.RED_CIRCLE else CONTEXT_MARGIN
    side = max(round(margin * long_side), min(round(SMALL_MARGIN * long_side), round(SMALL_WINDOW * size)))
    left, top, _, _ = _square(box, side)
    left, top = _shift_inside(left, side, width), _shift_inside(top, side, height)
    return Window(left, top, left + side, top + side)


def _square(box: Window, side: int) -> Window:
    left = (box.left + box.right - side) // 2
    top = (box.top + box.bottom - side) // 2
    return Window(left, top, left + side, top + side)


def _shift_inside(start: int, side: int, length: int) -> int:
    if side >= length:  # cannot fit: keep the image in the middle
        return (length - side) // 2
    return min(max(start, 0), length - side)


@dataclass(frozen=True)
class CropPlan:
    """How the regions of an image are cut, as the host decides it before it needs the device.

    Attributes:
        policy: Any but ``ensemble``.
        size: Side of the crops in pixels.
        boxes: See :func:`pixel_box`.
        windows: See :func:`crop_window`.
        seen: The parts of the windows that are inside the image.
        groups: Indices of regions that are resized together.
        measures: float32 (10, N), for the regions in the order of the groups: of each window the width, and
            the first and the end of the columns that are seen; the height and rows likewise; of the ellipse
            through the corners of its box, in pixels of the crop, the middle (x, y) and the half axes.
        places: int64 (N,), the index of each region in the order of the groups.
    """

    policy: CropPolicy
    size: int
    boxes: list[Window]
    windows: list[Window]
    seen: list[Window]
    groups: list[list[int]]
    measures: Tensor
    places: Tensor


def plan_crops(
    boxes: Sequence[Sequence[float]], policy: CropPolicy, image_size: tuple[int, int], size: int
) -> CropPlan:
    """Plans the crops of an image's regions.

    Args:
        boxes: Of each region x_min, y_min, x_max, y_max in pixels, half-open; clipped to the image.
        policy: Any policy but ``ensemble``.
        image_size: (height, width) of the image.
        size: Side of the crops in pixels.

    Raises:
        ValueError: The policy is ``ensemble``.
    """
    if policy is CropPolicy.ENSEMBLE:
        raise ValueError("an ensemble is made of vectors, not of pixels: cut each of its parts")
    inner = [pixel_box(box, *image_size) for box in boxes]
    windows = [crop_window(box, policy, *image_size, size) for box in inner]
    seen = [window.clip(*image_size) for window in windows]
    planes = 4 if needs_masks(policy) else 3
    groups = groups_by_size([(part.height, part.width) for part in seen], planes, size)
    order = [index for group in groups for index in group]
    measures = [_measures(inner[index], windows[index], seen[index], size) for index in order]
    return CropPlan(
        policy,
        size,
        inner,
        windows,
        seen,
        groups,
        torch.tensor(measures, dtype=torch.float32).reshape(-1, 10).T.contiguous(),
        torch.tensor(order, dtype=torch.int64),
    )


def _measures(box: Window, window: Window, seen: Window, size: int) -> tuple[float, ...]:
    """See :class:`CropPlan`."""
    return (
        *(window.width, seen.left - window.left, seen.right - window.left),
        *(window.height, seen.top - window.top, seen.bottom - window.top),
        ((box.left + box.right) / 2 - window.left) * size / window.width,
        ((box.top + box.bottom) / 2 - window.top) * size / window.height,
        box.width / math.sqrt(2) * size / window.width,
        box.height / math.sqrt(2) * size / window.height,
    )
