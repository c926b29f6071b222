"""Drawing what was found: outlines, boxes, filled masks, cut-outs, thumbnails. numpy and Pillow only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from regionsearch.images import EncodedImage, Pixels, encode_image
from regionsearch.masks import BoolMask, RunLengthMask, decode_rle
from regionsearch.v1 import types_pb2

Style = Literal["outline", "boxes", "mask"]
Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (255, 210, 0), (0, 158, 255), (255, 64, 129), (0, 200, 120), (255, 122, 0), (150, 90, 255), (0, 205, 210),
    (220, 40, 40),
)  # fmt: skip
"""Told apart with colour-blindness too, as far as eight colours can be; more phrases begin again."""

FULL_SIDE = 4096
"""Longest side of a rendering of a whole image, pixels."""

_FILL = 0.45  # opacity of a filled mask


@dataclass(frozen=True)
class Overlay:
    """Something to draw.

    Attributes:
        mask: As large as the image.
        box: Half-open, pixels.
        group: Which colour; hits of one phrase share it.
    """

    mask: types_pb2.Mask
    box: types_pb2.Box
    group: int = 0


def draw(pixels: Pixels, overlays: Sequence[Overlay], style: Style, legend: Sequence[str] = ()) -> Pixels:
    """A copy of an image with hits drawn into it; same size, so that coordinates keep their meaning.

    Args:
        pixels: RGB (height, width, 3).
        overlays: Best first; the best is drawn last, on top.
        style: ``outline`` is a ring just outside of the mask, which hides nothing of the object.
        legend: Names of the groups; shown in a corner when there are several.
    """
    canvas = np.array(pixels)
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 160))
    for overlay in reversed(overlays):
        colour = np.array(PALETTE[overlay.group % len(PALETTE)], np.float32)
        if style == "boxes":
            _frame(canvas, overlay.box, colour, thickness)
            continue
        # Only the neighbourhood of the box is touched: a large image with a small hit costs little.
        rows, columns = _window(overlay.box, thickness + 1, height, width)
        mask = _decode_window(overlay.mask, rows, columns)
        view = canvas[rows, columns]
        if style == "mask":
            view[mask] = np.rint(view[mask] * (1 - _FILL) + colour * _FILL).astype(np.uint8)
        else:
            view[ring(mask, thickness)] = colour.astype(np.uint8)
    if len(legend) > 1:
        _write_legend(canvas, legend)
    return canvas


def ring(mask: BoolMask, thickness: int) -> BoolMask:
    """The pixels outside of a mask within `thickness` of it, measured along rows, columns and diagonals."""
    return dilate(mask, thickness) & ~mask


def dilate(mask: BoolMask, radius: int) -> BoolMask:
    """A mask grown by a square of side ``2 * radius + 1``; rows first, then columns."""
    grown = mask
    for axis in (0, 1):
        counts = np.cumsum(
            np.pad(grown, [(radius + 1, radius) if a == axis else (0, 0) for a in (0, 1)]), axis
        )
        length = mask.shape[axis]
        ahead = np.take(counts, np.arange(length) + 2 * radius + 1, axis)
        behind = np.take(counts, np.arange(length), axis)
        grown = ahead > behind
    return grown


def cut_out(pixels: Pixels, mask: types_pb2.Mask, box: types_pb2.Box) -> NDArray[np.uint8]:
    """The object alone: RGBA of its box, transparent outside of its mask."""
    height, width = pixels.shape[:2]
    rows, columns = _window(box, 0, height, width)
    inside = _decode_window(mask, rows, columns)
    return np.dstack([pixels[rows, columns], inside.astype(np.uint8) * 255])


def mask_image(mask: types_pb2.Mask) -> NDArray[np.uint8]:
    """A mask in black and white, as large as its image."""
    return decode_rle(mask.coco_rle, mask.height, mask.width).astype(np.uint8) * 255


def encode(pixels: NDArray[np.uint8], image_format: Literal["png", "webp"]) -> bytes:
    """A rendered image's file."""
    return encode_image(pixels, "PNG" if image_format == "png" else "WEBP")


def full(image: EncodedImage) -> bytes:
    """An upright WebP in sRGB of an image that browsers may not show, its longer side within `FULL_SIDE`.

    Raises:
        RegionSearchError: UNSUPPORTED_IMAGE for a damaged file.
    """
    out = io.BytesIO()
    image.reduced(FULL_SIDE).save(out, "WEBP", quality=90)
    return out.getvalue()


def full_bytes(image: EncodedImage) -> int:
    """Memory that :func:`full` takes at most: that of the image, and of libwebp's two copies of it."""
    area = image.header.width * image.header.height
    return image.reduced_bytes(FULL_SIDE) + 8 * min(area, FULL_SIDE**2)


def thumbnail(image: EncodedImage, width: int) -> bytes:
    """A small upright WebP of an image, never larger than the image.

    Args:
        image: Its file.
        width: Longest side, pixels.

    Raises:
        RegionSearchError: UNSUPPORTED_IMAGE for a damaged file.
    """
    out = io.BytesIO()
    image.reduced(width).save(out, "WEBP", quality=82)
    return out.getvalue()


def _window(box: types_pb2.Box, margin: int, height: int, width: int) -> tuple[slice, slice]:
    top, bottom = int(np.floor(box.y_min)) - margin, int(np.ceil(box.y_max)) + margin
    left, right = int(np.floor(box.x_min)) - margin, int(np.ceil(box.x_max)) + margin
    return slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right))


def _decode_window(mask: types_pb2.Mask, rows: slice, columns: slice) -> BoolMask:
    runs = RunLengthMask.from_coco_rle(mask.coco_rle, mask.height, mask.width)
    return runs.window(rows.start, rows.stop, columns.start, columns.stop)


def _frame(canvas: Pixels, box: types_pb2.Box, colour: NDArray[np.float32], thickness: int) -> None:
    height, width = canvas.shape[:2]
    outer = _window(box, thickness, height, width)
    inner = _window(box, 0, height, width)
    kept = canvas[inner].copy()
    canvas[outer] = colour.astype(np.uint8)
    canvas[inner] = kept


def _write_legend(canvas: Pixels, names: Sequence[str]) -> None:
    height, width = canvas.shape[:2]
    size = max(11, round(min(height, width) / 28))
    font = ImageFont.load_default(size)
    shown = [name if len(name) <= 40 else f"{name[:39]}…" for name in names]
    line, pad = round(size * 1.4), round(size * 0.5)
    box_width = 3 * pad + size + round(max(font.getlength(name) for name in shown))
    box_height = 2 * pad + line * len(shown)
    panel = Image.new("RGB", (min(box_width, width), min(box_height, height)), (24, 24, 27))
    pen = ImageDraw.Draw(panel)
    for row, name in enumerate(shown):
        top = pad + row * line
        pen.rectangle((pad, top, pad + size - 1, top + size - 1), fill=PALETTE[row % len(PALETTE)])
        pen.text((2 * pad + size, top + size / 2), name, fill=(250, 250, 250), font=font, anchor="lm")
    canvas[: panel.height, : panel.width] = np.asarray(panel)
