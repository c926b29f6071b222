"""What image files have in common: limits, the parts that a look at the structure gives, and the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from regionsearch.errors import Kind, RegionSearchError, too_large

Buffer: TypeAlias = "bytes | memoryview"


@dataclass(frozen=True)
class Container:
    """What a look at the structure of a file gives; nothing has been decoded.

    Decoders see `pixels` and nothing else, so that no metadata costs time or memory, or moves a pixel.

    Attributes:
        file_format: Pillow's name of the format.
        pixels: The file without its metadata, in pieces.
        orientation: EXIF's, 1 to 8.
        profile: ICC profile of the colours, empty for sRGB.
        has_end: Whether the file goes on to its end marker.
        spare_bytes: Memory that the decoder takes for each pixel, next to the decoded image.
        inverted: Zero is white, and the decoder does not turn it.
        exif: EXIF block, empty without one, or where the decoder finds it.
    """

    file_format: str
    pixels: Sequence[Buffer]
    orientation: int = 1
    profile: bytes = b""
    has_end: bool = True
    spare_bytes: int = 0
    inverted: bool = False
    exif: Buffer = b""

    def joined(self, tail: bytes = b"") -> bytes:
        """The file as the decoder gets it."""
        return b"".join((*self.pixels, tail))


MIB = 1 << 20
MAX_SIDE = 65_535  # pixels; what a JPEG can hold. Resizing takes memory by the length of a side, too.
MAX_PARTS = 16_384
"""Chunks, segments, strips or tiles of one file: reading them takes Python's time, whatever they hold."""

CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "HEIF": "image/heic",
    "AVIF": "image/avif",
}
READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF"


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before it is decoded.

    Attributes:
        max_bytes: Size of the encoded file.
        max_pixels: Width times height. Pillow itself stops at about 179 million.
        process: Whose limits these are, for messages: ``gateway``, ``segmenter``, ``embedder``.
    """

    max_bytes: int = 32 * MIB
    max_pixels: int = 50_000_000
    process: str = ""

    def check_bytes(self, size: int, field: str) -> None:
        """Refuses a file that is too large.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        if size > self.max_bytes:
            raise too_large(
                field,
                f"{field} has {size} bytes, over the limit of {self.max_bytes} "
                f"({self._setting('max_image_bytes')}); send a smaller file",
            )

    def check_pixels(self, width: int, height: int, field: str) -> None:
        """Refuses an image that is too large.

        Raises:
            RegionSearchError: TOO_LARGE.
        """
        if max(width, height) > MAX_SIDE:
            raise too_large(
                field,
                f"{field} is {width} x {height} pixels, and no side may have more than {MAX_SIDE}; "
                "send a smaller image",
            )
        if width * height > self.max_pixels:
            raise too_large(
                field,
                f"{field} has {width} x {height} pixels, over the limit of {self.max_pixels} "
                f"({self._setting('max_image_pixels')}); send a smaller image",
            )

    def _setting(self, name: str) -> str:
        if not self.process:
            return name
        return f"{name} of the {self.process}; gateway, segmenter and embedder each have it: raise the three"


DEFAULT_LIMITS = ImageLimits()


class DamagedError(Exception):
    """A file that breaks the rules of its format so that it cannot be decoded."""


class TooIntricateError(Exception):
    """A file that would cost far more to decode than its size and pixels tell."""


def unsupported(field: str, problem: str) -> RegionSearchError:
    """An UNSUPPORTED_IMAGE error about one request field."""
    return RegionSearchError(Kind.UNSUPPORTED_IMAGE, f"{field} {problem}", field=field)
