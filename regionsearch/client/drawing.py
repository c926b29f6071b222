"""A hit, outlined in its image."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from regionsearch.images import ImageLimits, decode_image, encode_image
from regionsearch.schemas.responses.searches import Hit

COLOUR = (255, 64, 129)
EDGE = (255, 255, 255)
UNLIMITED = ImageLimits(max_bytes=sys.maxsize, max_pixels=sys.maxsize)


def outline(image: bytes, hit: Hit) -> bytes:
    """The image as PNG with a line around the hit: outside of its mask, or along its box without one.

    No limit of its own: what the server sent, it has let in.

    Args:
        image: The file that the hit is in.
        hit: Something found in it.
    """
    pixels = decode_image(image, UNLIMITED).copy()
    width = max(2, round(max(pixels.shape[:2]) / 200))
    shape = Image.new("L", (pixels.shape[1], pixels.shape[0]))
    if hit.mask is not None:
        shape = Image.fromarray(hit.mask.to_array().astype(np.uint8) * 255)
    else:
        place = hit.box
        corners = (place.x_min, place.y_min, place.x_max - 1, place.y_max - 1)
        ImageDraw.Draw(shape).rectangle(corners, fill=255)
    reach = width + max(1, width // 2)
    box = _around(shape, reach)
    shape, part = shape.crop(box), pixels[box[1] : box[3], box[0] : box[2]]
    inside = np.asarray(shape) > 0
    line = _grown(shape, width)
    part[_grown(shape, reach) & ~inside] = EDGE
    part[line & ~inside] = COLOUR
    return encode_image(pixels)


def _around(shape: Image.Image, by: int) -> tuple[int, int, int, int]:
    """What is not black, and as many pixels around it."""
    left, top, right, bottom = shape.getbbox() or (0, 0, 0, 0)
    return max(0, left - by), max(0, top - by), min(shape.width, right + by), min(shape.height, bottom + by)


def _grown(shape: Image.Image, by: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    for _ in range(by):
        shape = shape.filter(ImageFilter.MaxFilter(3))
    return np.asarray(shape) > 0
