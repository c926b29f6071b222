"""A hit, outlined in its picture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from regionsearch.client import Hit
from regionsearch.images import Pixels, decode_image, encode_image

COLOUR = (255, 64, 129)
EDGE = (255, 255, 255)


def outline(picture: bytes, hit: Hit) -> bytes:
    """The picture as PNG with a line around the hit: outside of its mask, or along its box without one.

    Args:
        picture: The file that the hit is in.
        hit: Something found in it.
    """
    pixels = decode_image(picture).copy()
    width = max(2, round(max(pixels.shape[:2]) / 200))
    shape = Image.new("L", (pixels.shape[1], pixels.shape[0]))
    if hit.mask is not None:
        shape = Image.fromarray(hit.mask.to_array().astype(np.uint8) * 255)
    else:
        box = hit.box
        ImageDraw.Draw(shape).rectangle((box.x_min, box.y_min, box.x_max - 1, box.y_max - 1), fill=255)
    inside = np.asarray(shape) > 0
    line = _grown(shape, width)
    _paint(pixels, _grown(shape, width + max(1, width // 2)) & ~inside, EDGE)
    _paint(pixels, line & ~inside, COLOUR)
    return encode_image(pixels)


def _grown(shape: Image.Image, by: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    for _ in range(by):
        shape = shape.filter(ImageFilter.MaxFilter(3))
    return np.asarray(shape) > 0


def _paint(
    pixels: Pixels, where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], colour: tuple[int, int, int]
) -> None:
    pixels[where] = colour
