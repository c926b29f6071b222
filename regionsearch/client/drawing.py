"""Hits, outlined in their images."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from html import escape

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


class Gallery:
    """What notebooks show of several hits: each outlined in its image, small, with its score.

    Args:
        hits: Those that are shown.
        images: The image of each, with the hit outlined.
        width: Longest side of each on the page, in pixels.
    """

    def __init__(self, hits: Sequence[Hit], images: Sequence[Image.Image], width: int) -> None:
        self.hits = hits
        self.images = [image.convert("RGB") for image in images]
        for image in self.images:
            image.thumbnail((width, width))

    def __repr__(self) -> str:
        return f"<{len(self.hits)} outlined hits>"

    def _repr_html_(self) -> str:
        figures = "".join(map(_figure, self.hits, self.images))
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{figures}</div>'


def _figure(hit: Hit, image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85)
    data = base64.b64encode(out.getvalue()).decode()
    words = [hit.label or "", f"{hit.score:.3f}", hit.image.name]
    caption = escape(" · ".join(filter(None, words)))
    picture = f'<img alt="{caption}" src="data:image/webp;base64,{data}" width="{image.width}">'
    style = f"margin:0;max-width:{image.width}px"
    return f'<figure style="{style}">{picture}<figcaption>{caption}</figcaption></figure>'


def _around(shape: Image.Image, by: int) -> tuple[int, int, int, int]:
    """What is not black, and as many pixels around it."""
    left, top, right, bottom = shape.getbbox() or (0, 0, 0, 0)
    return max(0, left - by), max(0, top - by), min(shape.width, right + by), min(shape.height, bottom + by)


def _grown(shape: Image.Image, by: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    for _ in range(by):
        shape = shape.filter(ImageFilter.MaxFilter(3))
    return np.asarray(shape) > 0
