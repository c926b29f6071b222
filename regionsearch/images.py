"""Pictures in and out: safe decoding, orientation, identity.

Everything after this module sees one kind of picture: uint8 RGB, shape (height, width, 3), as a viewer
shows it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from regionsearch.errors import Kind, RegionSearchError, invalid, too_large
from regionsearch.v1 import types_pb2

MIB = 1 << 20
STRIP_PIXELS = 1 << 18  # that are converted at once: a large picture is in memory twice, not five times
MAX_SIDE = 65_535  # pixels; what a JPEG can hold. Resizing takes memory by the length of a side, too.

# Formats that we read, by Pillow's name; a multi-picture phone JPEG calls itself MPO.
_CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
_READABLE = "JPEG, PNG, WebP, GIF, BMP or TIFF"

Pixels = NDArray[np.uint8]

# EXIF orientation -> a view of the upright picture as its file has it.
_AS_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
_SIDEWAYS = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before it is decoded.

    Attributes:
        max_bytes: Size of the encoded file.
        max_pixels: Width times height. Pillow itself stops at about 179 million.
    """

    max_bytes: int = 32 * MIB
    max_pixels: int = 50_000_000


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about itself; width and height in pixels after EXIF orientation."""

    width: int
    height: int
    content_type: str


DEFAULT_LIMITS = ImageLimits()


def image_id(data: bytes) -> str:
    """The identity of a picture: SHA-256 of its encoded bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def probe_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> ImageHeader:
    """Reads the header only.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for no bytes, UNSUPPORTED_IMAGE for what is no picture,
            TOO_LARGE over a limit. A file that is damaged further on passes.
    """
    with _open(data, limits, field) as image:
        width, height = image.size
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
        return ImageHeader(width, height, _CONTENT_TYPES[image.format or "PNG"])


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, field: str = "image") -> Pixels:
    """Decodes a file into uint8 RGB (height, width, 3), upright.

    The first frame of an animation counts, transparency is laid on white, 16 bits are scaled to 8, CMYK and
    palettes are converted.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for no bytes, UNSUPPORTED_IMAGE for what is no picture or a
            damaged one, TOO_LARGE over a limit.
    """
    with _open(data, limits, field) as image:
        orientation = _orientation(image)
        try:
            image.load()
            return _to_rgb(image, orientation, field)
        except (RegionSearchError, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders let any exception of a damaged file through
            reason = str(error) or type(error).__name__
            raise _unsupported(
                field, f"is a damaged {image.format} file ({reason}); send it again"
            ) from error


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
        raise invalid(field, f"{field} is missing; set encoded (a {_READABLE} file) or raw pixels")
    raw = image.raw
    if raw.height < 1 or raw.width < 1:
        raise invalid(f"{field}.raw", f"{field}.raw needs a height and a width of at least 1")
    _check_pixels(raw.width, raw.height, limits, f"{field}.raw")
    expected = raw.height * raw.width * 3
    if len(raw.rgb) != expected:
        raise invalid(
            f"{field}.raw.rgb",
            f"{field}.raw.rgb has {len(raw.rgb)} bytes; {raw.height} x {raw.width} pixels take {expected}",
        )
    return np.frombuffer(raw.rgb, np.uint8).reshape(raw.height, raw.width, 3)


def decoded_bytes(image: types_pb2.Image, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """Memory that :func:`image_from_proto` takes, by what the picture says about its size.

    Seven bytes a pixel: four inside Pillow, three in the array that remains. Raw pixels count as they are; 0
    for what is no picture, as decoding it will find out.
    """
    if image.WhichOneof("source") != "encoded":
        return len(image.raw.rgb)
    try:
        header = probe_image(image.encoded, limits)
    except RegionSearchError:
        return 0
    return 7 * header.width * header.height


def encode_image(
    pixels: Pixels, file_format: Literal["PNG", "WEBP", "JPEG"] = "PNG", quality: int = 90
) -> bytes:
    """Encodes uint8 pixels: (height, width) grey, (height, width, 3) RGB or (height, width, 4) RGBA.

    Args:
        pixels: The picture.
        file_format: JPEG takes no RGBA.
        quality: 1 to 100, for JPEG and WebP.
    """
    out = io.BytesIO()
    options = {"compress_level": 6} if file_format == "PNG" else {"quality": quality}
    Image.fromarray(pixels).save(out, file_format, **options)
    return out.getvalue()


def _open(data: bytes, limits: ImageLimits, field: str) -> Image.Image:
    if not data:
        raise invalid(field, f"{field} is empty; send the bytes of a {_READABLE} file")
    if len(data) > limits.max_bytes:
        raise too_large(
            field,
            f"{field} has {len(data)} bytes, over the limit of {limits.max_bytes} (max_image_bytes); "
            "send a smaller file",
        )
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(
            field, f"{field} has far too many pixels ({error}); send a smaller picture"
        ) from error
    except Exception as error:  # header parsers let any exception of a damaged file through
        raise _unsupported(field, f"is no picture that can be read; send a {_READABLE} file") from error
    _check_pixels(image.width, image.height, limits, field)
    return image


def _check_pixels(width: int, height: int, limits: ImageLimits, field: str) -> None:
    if max(width, height) > MAX_SIDE:
        raise too_large(
            field,
            f"{field} is {width} x {height} pixels, and no side may have more than {MAX_SIDE}; "
            "send a smaller picture",
        )
    if width * height > limits.max_pixels:
        raise too_large(
            field,
            f"{field} has {width} x {height} pixels, over the limit of {limits.max_pixels} "
            "(max_image_pixels); send a smaller picture",
        )


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF upright itself. Asking a PNG without an EXIF chunk would decode the whole file.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block is no reason to refuse a picture
        return 1


def _to_rgb(image: Image.Image, orientation: int, field: str) -> Pixels:
    if image.mode in ("F", "I"):  # nobody says which value is white
        raise _unsupported(field, "has 32 bits a channel; convert it to 8 or 16")
    width, height = image.size
    upright = np.empty((width, height, 3) if orientation in _SIDEWAYS else (height, width, 3), np.uint8)
    stored = _AS_STORED[orientation](upright) if orientation in _AS_STORED else upright
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = _strip_to_rgb(image.crop((0, top, width, bottom)))
    return upright


def _strip_to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        grey = (deep // 257).astype(np.uint8)
        if "transparency" in image.info:  # one grey that stands for nothing
            grey[deep == image.info["transparency"]] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image.convert("RGB"))


def _unsupported(field: str, problem: str) -> RegionSearchError:
    return RegionSearchError(Kind.UNSUPPORTED_IMAGE, f"{field} {problem}", field=field)
