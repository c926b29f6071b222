"""Images with an orientation and a profile, and the check that all readers of one agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from regionsearch.images import EncodedImage, colour, decode_image, probe_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 98, "subsampling": 0},
}
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def landscape(width: int = 40, height: int = 20) -> Image.Image:
    """The upper left quarter red, the rest blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    return Image.fromarray(pixels)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = orientation
    return block


def check_one_truth(data: bytes) -> np.ndarray[Any, Any]:
    """Size, pixels and thumbnail agree; returns the pixels."""
    header = probe_image(data)
    pixels = decode_image(data)
    assert pixels.shape == (header.height, header.width, 3)
    with EncodedImage(data) as image:
        small = image.reduced(24)
    scale = min(1.0, 24 / max(header.width, header.height))
    assert small.size == (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
    with EncodedImage(data) as image:
        whole = image.reduced(max(pixels.shape))
    shown = np.asarray(Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole.convert("RGBA")))
    assert np.abs(shown[..., :3].astype(int) - pixels).max() <= 2
    return pixels


DISPLAY_P3 = colour.of_code_points(12, 13, grey=False)
