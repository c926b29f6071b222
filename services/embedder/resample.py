"""Antialiased bicubic or bilinear resizing of many windows at once, as two batched matrix products.

Follows Pillow's ``ImagingResample``: separable, kernel stretched by the scale when shrinking, weights
normalised inside the canvas, horizontal pass first, each pass rounded and clamped to 0..255. That keeps
embeddings what they would be with the PIL preprocessing the models were trained with; ``grid_sample`` and
non-antialiased bicubic do not (they alias, and the overshoot of an unclamped bicubic shifts edges).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

STRIP_BYTES = 1 << 23  # pixels turned to float at a time; bounds the memory of a resize, whatever the image
WEIGHTS_AT_ONCE = 1 << 23  # of all matrices of a batch; long thin windows have many weights for few pixels


def bicubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (Pillow's BICUBIC) at a distance in kernel units."""
    d = distance.abs()
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def bilinear(distance: Tensor) -> Tensor:
    """Triangle kernel (Pillow's BILINEAR) at a distance in kernel units."""
    return (1 - distance.abs()).clamp(min=0)


# Pillow's filters by open_clip's names: the kernel, and the distance at which it ends.
KERNELS = {"bicubic": (bicubic, 2), "bilinear": (bilinear, 1)}


def axis_weights(
    length: Tensor,
    seen: Tensor,
    longest: int,
    taps: int,
    size: int,
    interpolation: str = "bicubic",
) -> Tensor:
    """Resampling matrices of one axis.

    Args:
        length: (B,) extent of the windows in pixels.
        seen: (2, B) first pixel, and the one after the last, of the part of the window that the matrices are
            for.
        longest: The largest of `length`, which the host knows without asking the device.
        taps: Width of the matrices, at least the longest part that is seen.
        size: Output pixels.
        interpolation: One of :data:`KERNELS`.

    Returns:
        (B, size, taps) float32. Rows sum to one, or to the share of the output pixel that is seen.
    """
    kernel, support = KERNELS[interpolation]
    scale = (length / size).view(-1, 1, 1)
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(size, device=length.device).view(1, -1, 1) + 0.5) * scale
    reach = math.ceil(2 * support * max(1.0, longest / size)) + 1  # of an output pixel, beyond the window too
    first = (centre - support * stretch).floor()
    position = first + torch.arange(reach, device=length.device)
    weights = kernel((position + 0.5 - centre) / stretch)
    weights = weights * ((position >= 0) & (position < length.view(-1, 1, 1)))
    weights = weights / weights.sum(-1, keepdim=True)
    first_seen, end = seen.view(2, -1, 1, 1).unbind()
    weights = weights * ((position >= first_seen) & (position < end))
    dense = weights.new_zeros(len(length), size, taps)
    return dense.scatter_add_(2, (position - first_seen).long().clamp_(0, taps - 1), weights)


def resample(pixels: Tensor, horizontal: Tensor, vertical: Tensor, outside: Tensor | None = None) -> Tensor:
    """Resizes a batch of canvases with one matrix per canvas and axis.

    Args:
        pixels: (B, h, C, w) uint8: rows of planes, so that both passes are plain matrix products.
        horizontal: (B, out_w, w) weights of the x axis.
        vertical: (B, out_h, h) weights of the y axis.
        outside: (C,) values 0..255 of the parts of the canvases that are not in `pixels`, where the weights
            are those of a part that is seen (see :func:`axis_weights`).

    Returns:
        (B, C, out_h, out_w) float32 with the whole values 0..255 that Pillow would give, within one or two.
    """
    batch, height, channels, width = pixels.shape
    columns = horizontal.transpose(1, 2)
    unseen_x = unseen_y = None
    if outside is not None:
        unseen_x = (1 - horizontal.sum(-1))[:, None, None] * outside.view(-1, 1)
        unseen_y = (1 - vertical.sum(-1))[:, :, None, None] * outside.view(-1, 1)
    rows_at_once = max(1, STRIP_BYTES // (batch * channels * width))
    strips = []
    for strip in torch.split(pixels, rows_at_once, dim=1):
        narrowed = torch.bmm(strip.reshape(batch, -1, width).float(), columns)
        narrowed = narrowed.view(batch, -1, channels, columns.shape[2])
        if unseen_x is not None:
            narrowed += unseen_x
        strips.append(_whole(narrowed))
    narrow = strips[0] if len(strips) == 1 else torch.cat(strips, dim=1)
    small = torch.bmm(vertical, narrow.view(batch, height, -1)).view(batch, -1, channels, narrow.shape[3])
    if unseen_y is not None:
        small += unseen_y
    return _whole(small).transpose(1, 2)


def _whole(values: Tensor) -> Tensor:
    """Whole values 0..255, in place. Halves go up, as Pillow's do: to halve an image makes many of them."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def resize_image(
    pixels: NDArray[np.uint8],
    size: int,
    mode: str = "shortest",
    fill: int = 0,
    interpolation: str = "bicubic",
) -> Tensor:
    """Fits a whole image into a square, as open_clip's inference transform does: with Pillow.

    Args:
        pixels: (H, W, 3) uint8.
        size: Side of the square.
        mode: ``shortest`` scales the short side to `size` and cuts the centre, ``longest`` scales the long
            side and pads with `fill`, ``squash`` gives up the aspect ratio.
        fill: Value of the padding, 0..255.
        interpolation: One of :data:`KERNELS`.

    Returns:
        (3, size, size) float32 with values 0..255.

    Raises:
        ValueError: `mode` is none of the three.
    """
    height, width = pixels.shape[:2]
    if mode == "squash":
        out_h, out_w = size, size
    elif mode == "shortest":
        out_h = size if height <= width else int(size * height / width)
        out_w = size if width <= height else int(size * width / height)
    elif mode == "longest":
        ratio = max(height, width) / size
        out_h, out_w = max(1, round(height / ratio)), max(1, round(width / ratio))
    else:
        raise ValueError(f"unknown resize mode {mode!r}: use shortest, longest or squash")
    # What would be cut off is not made: the long side of a panorama may have any length.
    (left, right, columns), (top, bottom, rows) = (
        _centre(length, out, size) for length, out in ((width, out_w), (height, out_h))
    )
    resampling = Image.Resampling[interpolation.upper()]
    resized = Image.fromarray(pixels).resize((columns, rows), resampling, (left, top, right, bottom))
    if (rows, columns) != (size, size):
        canvas = Image.new("RGB", (size, size), (fill, fill, fill))
        canvas.paste(resized, ((size - columns) // 2, (size - rows) // 2))
        resized = canvas
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


def _centre(length: int, out_length: int, size: int) -> tuple[float, float, int]:
    """The part of `length` pixels that the middle `size` of `out_length` show: start, end, pixels shown."""
    shown, scale = min(out_length, size), length / out_length
    first = round((out_length - shown) / 2)
    return first * scale, min((first + shown) * scale, length), shown


@functools.lru_cache(maxsize=64)
def gaussian_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """(size, size) matrix that blurs one axis with a Gaussian of `sigma` pixels; its rows sum to one."""
    position = torch.arange(size, device=device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((position - position.view(-1, 1)) / sigma) ** 2)
    return weights / weights.sum(-1, keepdim=True)


def groups_by_size(sizes: list[tuple[int, int]], channels: int, size: int) -> list[list[int]]:
    """Partitions windows so that each group pads little and its pixels and weights take bounded memory.

    Args:
        sizes: (height, width) of every window.
        channels: Planes per window.
        size: Side of the crops that they become.

    Returns:
        Lists of indices into `sizes`; each group's area, padded to its largest window, is at most twice its
        own.
    """
    order = sorted(range(len(sizes)), key=lambda index: (max(sizes[index]), min(sizes[index])))
    groups: list[list[int]] = []
    height = width = area = 0
    for index in order:
        h, w = sizes[index]
        height, width, area = max(height, h), max(width, w), area + h * w
        count = len(groups[-1]) + 1 if groups else math.inf
        padded = height * width * count
        weights = (height + width) * size * count
        if padded > 2 * area or padded * channels > STRIP_BYTES or weights > WEIGHTS_AT_ONCE:
            groups.append([])
            height, width, area = h, w, h * w
        groups[-1].append(index)
    return groups
