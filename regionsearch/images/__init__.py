"""Images in and out: safe decoding, orientation, colour, identity.

Everything after this package sees one kind of image: uint8 sRGB, shape (height, width, 3), as a viewer shows
it. A file goes through three steps. Its structure is looked at (`container` and the modules of the formats):
what would cost more than its pixels need is refused, orientation and colour profile are read, and everything
that is not pixels is left out. Then Pillow opens the rest, and the size is checked. Then it is decoded
(`encoded`), into memory that admission has counted with.
"""

from __future__ import annotations

import hashlib
import io
from typing import Literal

import numpy as np
from PIL import Image

from regionsearch.errors import RegionSearchError, invalid
from regionsearch.images.container import DEFAULT_LIMITS, READABLE, ImageLimits
from regionsearch.images.encoded import EncodedImage, ImageHeader, Pixels
from regionsearch.v1 import types_pb2

__all__ = [
    "DEFAULT_LIMITS",
    "READABLE",
    "EncodedImage",
    "ImageHeader",
    "ImageLimits",
    "Pixels",
    "decode_image",
    "decoded_bytes",
    "encode_image",
    "image_from_proto",
    "image_id",
    "probe_image",
]


def image_id(data: bytes) -> str:
    """The identity of an image: SHA-256 of its encoded bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def probe_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> ImageHeader:
    """What a file says about itself; nothing is decoded.

    Raises:
        RegionSearchError: As `EncodedImage`; a file that is damaged further on passes.
    """
    with EncodedImage(data, limits, field) as image:
        return image.header


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> Pixels:
    """Decodes a file into uint8 sRGB (height, width, 3), upright; see `EncodedImage`.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for no bytes, UNSUPPORTED_IMAGE for what is not an image or a
            damaged one, TOO_LARGE over a limit.
    """
    with EncodedImage(data, limits, field) as image:
        return image.decode()


def image_from_proto(
    image: types_pb2.Image, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image"
) -> Pixels:
    """The pixels of an `Image` message, uint8 RGB (height, width, 3), upright.

    Raw pixels are not copied: they come out read-only.

    Raises:
        RegionSearchError: As `decode_image`, and INVALID_ARGUMENT when no source is set or raw pixels do not
            match their size.
    """
    source = image.WhichOneof("source")
    if source == "encoded":
        return decode_image(image.encoded, limits, f"{field}.encoded")
    if source is None:
        raise invalid(field, f"{field} is missing; set encoded (a {READABLE} file) or raw pixels")
    raw = image.raw
    if raw.height < 1 or raw.width < 1:
        raise invalid(f"{field}.raw", f"{field}.raw needs a height and a width of at least 1")
    limits.check_pixels(raw.width, raw.height, f"{field}.raw")
    expected = raw.height * raw.width * 3
    if len(raw.rgb) != expected:
        raise invalid(
            f"{field}.raw.rgb",
            f"{field}.raw.rgb has {len(raw.rgb)} bytes; {raw.height} x {raw.width} pixels take {expected}",
        )
    return np.frombuffer(raw.rgb, np.uint8).reshape(raw.height, raw.width, 3)


def decoded_bytes(image: types_pb2.Image, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """Memory that :func:`image_from_proto` takes, by what the image says about its size.

    Raw pixels count as they are; 0 for what is not an image, as decoding it will find out.
    """
    if image.WhichOneof("source") != "encoded":
        return len(image.raw.rgb)
    try:
        with EncodedImage(image.encoded, limits) as encoded:
            return encoded.decoded_bytes
    except RegionSearchError:
        return 0


def encode_image(
    pixels: Pixels, file_format: Literal["PNG", "WEBP", "JPEG"] = "PNG", quality: int = 90
) -> bytes:
    """Encodes uint8 pixels: (height, width) grey, (height, width, 3) RGB or (height, width, 4) RGBA.

    Args:
        pixels: The image.
        file_format: JPEG takes no RGBA.
        quality: 1 to 100, for JPEG and WebP.
    """
    out = io.BytesIO()
    options = {"compress_level": 6} if file_format == "PNG" else {"quality": quality}
    Image.fromarray(pixels).save(out, file_format, **options)
    return out.getvalue()
