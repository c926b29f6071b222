"""Cuts regions out of one image for the embedder: every crop policy, all regions in one batched operation.

A policy is two independent choices: which window of the image the region is seen in, and what becomes of the
pixels outside the object. Windows have whole-pixel edges; what lies beyond the image is filled with the
model's mean colour. The object of a region is its mask inside its box, or the whole box without a
mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from services.embedder.options import CropPolicy
from services.embedder.resample import axis_weights, gaussian_matrix, groups_by_size, resample

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

CONTEXT_MARGIN = 1.3  # side of a context window over the long side of its box
CIRCLE_MARGIN = 1.6  # the red ellipse passes through the corners of the box, so that it needs more room
# Small things are seen in up to 3x context, in windows of up to 4/7 of the crop's side (128 px for a model of
# 224): beyond that the surroundings would cost the thing its resolution.
SMALL_MARGIN, SMALL_WINDOW = 3.0, 4 / 7
BLUR_SIGMA = 1 / 16  # of the crop's side
CIRCLE_WIDTH = 1 / 48  # of the crop's side


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
    if policy in _FILLS:
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


def crop_regions(
    image: Tensor,
    boxes: Tensor,
    masks: Tensor | Sequence[Tensor] | None,
    policy: CropPolicy | str,
    size: int,
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    interpolation: str = "bicubic",
) -> Tensor:
    """Cuts, masks, resizes and normalises the regions of one image.

    Args:
        image: (3, H, W) uint8 RGB, on the device to compute on.
        boxes: (N, 4) x_min, y_min, x_max, y_max in pixels, half-open edges; clipped to the image.
        masks: (N, H, W) bool; or N masks each cut to its :func:`pixel_box`, which costs no memory for the
            rest of a large image; or None, where the box is the object.
        policy: Any policy but ``ensemble``, whose parts are cut one by one.
        size: Side of the crops in pixels.
        mean: Per channel, of pixel values in 0..1; also the colour beyond the image.
        std: Per channel, of pixel values in 0..1.
        interpolation: One of :data:`services.embedder.resample.KERNELS`.

    Returns:
        (N, 3, size, size) float32, normalised with `mean` and `std`.

    Raises:
        ValueError: The policy is ``ensemble`` or unknown, or the shapes do not belong together.
    """
    policy = CropPolicy(policy)
    if policy is CropPolicy.ENSEMBLE:
        raise ValueError("an ensemble is made of vectors, not of pixels: cut each of its parts")
    _check(image, boxes, masks)
    _, height, width = image.shape
    inner = [pixel_box(box, height, width) for box in boxes.tolist()]
    windows = [crop_window(box, policy, height, width, size) for box in inner]
    seen = [window.clip(height, width) for window in windows]
    colour = torch.tensor([round(255.0 * value) for value in mean], device=image.device)
    with_mask = policy in _FILLS or policy is CropPolicy.BLUR
    crops = image.new_empty((len(inner), 3, size, size), dtype=torch.float32)
    for group in groups_by_size([(s.height, s.width) for s in seen], 4 if with_mask else 3, size):
        chosen, parts = [windows[index] for index in group], [seen[index] for index in group]
        objects = [_object(masks, index, inner[index]) for index in group] if with_mask else None
        canvases = _cut(image, parts, [inner[index] for index in group], objects)
        planes = _resize(canvases, chosen, parts, colour, size, interpolation)
        crops[group] = _compose(planes, policy, [inner[index] for index in group], chosen, mean)
    scale = torch.tensor(std, device=image.device).view(3, 1, 1) * 255
    shift = torch.tensor(mean, device=image.device).view(3, 1, 1) * 255
    return crops.sub_(shift).div_(scale)


def _check(image: Tensor, boxes: Tensor, masks: Tensor | Sequence[Tensor] | None) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image must be (3, H, W) uint8, not {tuple(image.shape)} {image.dtype}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), not {tuple(boxes.shape)}")
    if masks is not None and len(masks) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes need as many masks, not {len(masks)}")
    if isinstance(masks, Tensor) and masks.shape[1:] != image.shape[1:]:
        raise ValueError(f"masks {tuple(masks.shape)} do not belong to an image {tuple(image.shape)}")


def _object(masks: Tensor | Sequence[Tensor] | None, index: int, box: Window) -> Tensor | None:
    """The mask of a region cut to its box, or None where the whole box is the object."""
    if masks is None:
        return None
    mask = masks[index]
    if isinstance(masks, Tensor):
        return mask[box.top : box.bottom, box.left : box.right]
    if mask.shape != (box.height, box.width):
        raise ValueError(f"mask {index} is {tuple(mask.shape)}, its box is {(box.height, box.width)}")
    return mask


def _cut(
    image: Tensor, parts: Sequence[Window], boxes: Sequence[Window], objects: Sequence[Tensor | None] | None
) -> Tensor:
    """Copies parts of the image into one padded uint8 batch (B, h, 3 or 4, w).

    The fourth plane is 255 in the object.
    """
    shape = (max(part.height for part in parts), max(part.width for part in parts))
    canvases = image.new_zeros((len(parts), shape[0], 3 if objects is None else 4, shape[1]))
    for i, part in enumerate(parts):
        pixels = image[:, part.top : part.bottom, part.left : part.right]
        canvases[i, : part.height, :3, : part.width] = pixels.transpose(0, 1)
        if objects is not None:
            box, mask = boxes[i], objects[i]
            rows = slice(box.top - part.top, box.bottom - part.top)
            columns = slice(box.left - part.left, box.right - part.left)
            canvases[i, rows, 3, columns] = 255 if mask is None else mask.to(torch.uint8) * 255
    return canvases


def _resize(
    canvases: Tensor,
    windows: Sequence[Window],
    parts: Sequence[Window],
    colour: Tensor,
    size: int,
    interpolation: str,
) -> Tensor:
    """Resizes windows of which only a part, that inside the image, is there; the rest has one colour.

    What lies outside is never made: the square around a panorama has many times the panorama's pixels.
    """
    plane = torch.tensor(
        [
            (
                *(w.width, p.left - w.left, p.right - w.left),
                *(w.height, p.top - w.top, p.bottom - w.top),
            )
            for w, p in zip(windows, parts, strict=True)
        ],
        dtype=torch.float32,
        device=canvases.device,
    ).T
    zero = torch.zeros_like(plane[0])
    horizontal = axis_weights(zero, plane[0], plane[0], canvases.shape[3], size, plane[1:3], interpolation)
    vertical = axis_weights(zero, plane[3], plane[3], canvases.shape[1], size, plane[4:6], interpolation)
    if all(window == part for window, part in zip(windows, parts, strict=True)):
        return resample(canvases, horizontal, vertical)
    outside = torch.cat([colour, colour.new_zeros(canvases.shape[2] - 3)])
    return resample(canvases, horizontal, vertical, outside)


def _compose(
    planes: Tensor,
    policy: CropPolicy,
    boxes: Sequence[Window],
    windows: Sequence[Window],
    mean: Sequence[float],
) -> Tensor:
    """Puts the policy's background behind the resized object: (B, 3, size, size), values 0..255."""
    pixels = planes[:, :3]
    if policy in _FILLS:
        fill = _FILLS[policy] or tuple(255 * value for value in mean)
        background = torch.tensor(fill, device=planes.device).view(1, 3, 1, 1)
        return torch.lerp(background.expand_as(pixels), pixels, planes[:, 3:] / 255)
    if policy is CropPolicy.BLUR:
        blur = gaussian_matrix(planes.shape[-1], BLUR_SIGMA * planes.shape[-1], planes.device)
        across = pixels @ blur.T
        blurred = (across.transpose(2, 3) @ blur.T).transpose(2, 3)
        return torch.lerp(blurred, pixels, planes[:, 3:] / 255)
    if policy is CropPolicy.RED_CIRCLE:
        red = torch.tensor((255.0, 0.0, 0.0), device=planes.device).view(1, 3, 1, 1)
        return torch.lerp(
            pixels, red.expand_as(pixels), _ring(boxes, windows, planes.shape[-1], planes.device)
        )
    return pixels


_FILLS: dict[CropPolicy, tuple[float, float, float] | None] = {
    CropPolicy.MASKED_WHITE: (255.0, 255.0, 255.0),
    CropPolicy.MASKED_BLACK: (0.0, 0.0, 0.0),
    CropPolicy.MASKED_MEAN: None,
}


def _ring(boxes: Sequence[Window], windows: Sequence[Window], size: int, device: torch.device) -> Tensor:
    """Coverage (B, 1, size, size) of an ellipse through the corners of each box, drawn `CIRCLE_WIDTH` wide.

    The distance to the ellipse is the first-order one, f / |grad f| of its implicit function.
    """
    geometry = torch.tensor(
        [
            (
                ((b.left + b.right) / 2 - w.left) * size / w.width,
                ((b.top + b.bottom) / 2 - w.top) * size / w.height,
                b.width / math.sqrt(2) * size / w.width,
                b.height / math.sqrt(2) * size / w.height,
            )
            for b, w in zip(boxes, windows, strict=True)
        ],
        device=device,
    ).view(-1, 4, 1, 1)
    x0, y0, a, b = geometry.unbind(1)
    centre = torch.arange(size, device=device) + 0.5
    x, y = centre.view(1, 1, -1) - x0, centre.view(1, -1, 1) - y0
    radius = torch.sqrt((x / a) ** 2 + (y / b) ** 2).clamp(min=1e-6)
    gradient = torch.sqrt((x / a**2) ** 2 + (y / b**2) ** 2).clamp(min=1e-6) / radius
    distance = (radius - 1).abs() / gradient
    return (max(1.5, CIRCLE_WIDTH * size) / 2 + 0.5 - distance).clamp(0, 1).unsqueeze(1)
