"""Cuts regions out of one image for the embedder: every crop policy, all regions in one batched operation.

A policy is two independent choices: which window of the image the region is seen in (`crop_plan.py`), and
what becomes of the pixels outside the object. What lies beyond the image is filled with the model's mean
colour. The object of a region is its mask inside its box, or the whole box without a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from services.embedder.crop_plan import FILLS, CropPlan, Window, needs_masks, plan_crops
from services.embedder.options import CropPolicy
from services.embedder.resample import axis_weights, gaussian_matrix, resample

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

BLUR_SIGMA = 1 / 16  # of the crop's side
CIRCLE_WIDTH = 1 / 48  # of the crop's side


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
        masks: (N, H, W) bool; or N masks each cut to its `pixel_box`, which costs no memory for the rest of a
            large image; or None, where the box is the object.
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
    _check(image, boxes, masks)
    plan = plan_crops(boxes.tolist(), CropPolicy(policy), (image.shape[1], image.shape[2]), size)
    measures, places = plan.measures.to(image.device), plan.places.to(image.device)
    objects: list[Callable[[], Tensor]] | None = None
    if masks is not None:
        objects = [functools.partial(_object, masks, box, index) for index, box in enumerate(plan.boxes)]
    return cut_crops(image, plan, measures, places, objects, mean, std, interpolation)


def cut_crops(
    image: Tensor,
    plan: CropPlan,
    measures: Tensor,
    places: Tensor,
    objects: Sequence[Callable[[], Tensor]] | None,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> Tensor:
    """Cuts planned crops, see :func:`crop_regions`; copies nothing to the device, and does not wait for it.

    Args:
        image: (3, H, W) uint8 RGB, on the device.
        plan: What to cut.
        measures: Those of the plan, on the device.
        places: Those of the plan, on the device.
        objects: Return the masks of the regions, each cut to its box, on the device; called just before a
            mask is needed. None where boxes are the objects.
        mean: See :func:`crop_regions`.
        std: See :func:`crop_regions`.
        interpolation: See :func:`crop_regions`.
    """
    size, device = plan.size, image.device
    colour = _constant(tuple(round(255.0 * value) for value in mean), device)
    crops = image.new_empty((len(plan.boxes), 3, size, size), dtype=torch.float32)
    end = 0
    for group in plan.groups:
        begin, end = end, end + len(group)
        canvases = _cut(image, plan, group, objects)
        planes = _resize(canvases, plan, group, measures[:6, begin:end], colour, interpolation)
        composed = _compose(planes, plan.policy, measures[6:, begin:end], mean)
        crops.index_copy_(0, places[begin:end], composed)
    shift, scale = (_constant(tuple(values), device).view(3, 1, 1) * 255 for values in (mean, std))
    return crops.sub_(shift).div_(scale)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on the device, copied there once."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def _check(image: Tensor, boxes: Tensor, masks: Tensor | Sequence[Tensor] | None) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"image must be (3, H, W) uint8, not {tuple(image.shape)} {image.dtype}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), not {tuple(boxes.shape)}")
    if masks is not None and len(masks) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes need as many masks, not {len(masks)}")
    if isinstance(masks, Tensor) and masks.shape[1:] != image.shape[1:]:
        raise ValueError(f"masks {tuple(masks.shape)} do not belong to an image {tuple(image.shape)}")


def _object(masks: Tensor | Sequence[Tensor], box: Window, index: int) -> Tensor:
    """The mask of a region cut to its box."""
    mask = masks[index]
    if isinstance(masks, Tensor):
        return mask[box.top : box.bottom, box.left : box.right]
    if mask.shape != (box.height, box.width):
        raise ValueError(f"mask {index} is {tuple(mask.shape)}, its box is {(box.height, box.width)}")
    return mask


def _cut(
    image: Tensor, plan: CropPlan, group: Sequence[int], objects: Sequence[Callable[[], Tensor]] | None
) -> Tensor:
    """Copies the seen parts of a group's windows into one padded uint8 batch (B, h, 3 or 4, w).

    The fourth plane is 255 in the object.
    """
    parts = [plan.seen[index] for index in group]
    height, width = max(part.height for part in parts), max(part.width for part in parts)
    canvases = image.new_zeros((len(parts), height, 4 if needs_masks(plan.policy) else 3, width))
    for canvas, part, index in zip(canvases, parts, group, strict=True):
        pixels = image[:, part.top : part.bottom, part.left : part.right]
        canvas[: part.height, :3, : part.width] = pixels.transpose(0, 1)
        if needs_masks(plan.policy):
            box = plan.boxes[index]
            rows = slice(box.top - part.top, box.bottom - part.top)
            columns = slice(box.left - part.left, box.right - part.left)
            canvas[rows, 3, columns] = 255 if objects is None else objects[index]().to(torch.uint8) * 255
    return canvases


def _resize(
    canvases: Tensor,
    plan: CropPlan,
    group: Sequence[int],
    measures: Tensor,
    colour: Tensor,
    interpolation: str,
) -> Tensor:
    """Resizes windows of which only a part, that inside the image, is there; the rest has one colour.

    What lies outside is never made: the square around a panorama has many times the panorama's pixels.
    """
    windows, (_, height, _, width) = [plan.windows[index] for index in group], canvases.shape
    widest, highest = max(window.width for window in windows), max(window.height for window in windows)
    horizontal = axis_weights(measures[0], measures[1:3], widest, width, plan.size, interpolation)
    vertical = axis_weights(measures[3], measures[4:6], highest, height, plan.size, interpolation)
    if all(plan.windows[index] == plan.seen[index] for index in group):
        return resample(canvases, horizontal, vertical)
    outside = torch.cat([colour, colour.new_zeros(canvases.shape[2] - 3)])
    return resample(canvases, horizontal, vertical, outside)


def _compose(planes: Tensor, policy: CropPolicy, ellipses: Tensor, mean: Sequence[float]) -> Tensor:
    """Puts the policy's background behind the resized object: (B, 3, size, size), values 0..255."""
    pixels = planes[:, :3]
    if policy in FILLS:
        fill = FILLS[policy] or tuple(255 * value for value in mean)
        background = _constant(fill, planes.device).view(1, 3, 1, 1)
        return torch.lerp(background.expand_as(pixels), pixels, planes[:, 3:] / 255)
    if policy is CropPolicy.BLUR:
        blur = gaussian_matrix(planes.shape[-1], BLUR_SIGMA * planes.shape[-1], planes.device)
        across = pixels @ blur.T
        blurred = (across.transpose(2, 3) @ blur.T).transpose(2, 3)
        return torch.lerp(blurred, pixels, planes[:, 3:] / 255)
    if policy is CropPolicy.RED_CIRCLE:
        red = _constant((255.0, 0.0, 0.0), planes.device).view(1, 3, 1, 1)
        return torch.lerp(pixels, red.expand_as(pixels), _ring(ellipses, planes.shape[-1]))
    return pixels


def _ring(ellipses: Tensor, size: int) -> Tensor:
    """Coverage (B, 1, size, size) of ellipses (4, B), see :class:`CropPlan`, drawn `CIRCLE_WIDTH` wide.

    The distance to the ellipse is the first-order one, f / |grad f| of its implicit function.
    """
    x0, y0, a, b = ellipses.view(4, -1, 1, 1)
    centre = torch.arange(size, device=ellipses.device) + 0.5
    x, y = centre.view(1, 1, -1) - x0, centre.view(1, -1, 1) - y0
    radius = torch.sqrt((x / a) ** 2 + (y / b) ** 2).clamp(min=1e-6)
    gradient = torch.sqrt((x / a**2) ** 2 + (y / b**2) ** 2).clamp(min=1e-6) / radius
    distance = (radius - 1).abs() / gradient
    return (max(1.5, CIRCLE_WIDTH * size) / 2 + 0.5 - distance).clamp(0, 1).unsqueeze(1)
