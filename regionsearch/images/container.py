"""What image files have in common: limits, the parts that a look at the structure gives, and the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from regionsearch.errors import Kind, RegionSearchError, too_large

Buffer: TypeAlias = "bytes | memoryview"

_ORIENTATION = 274
_ENTRY = 12  # bytes of an IFD's entry


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
    """

    file_format: str
    pixels: Sequence[Buffer]
    orientation: int = 1
    profile: bytes = b""
    has_end: bool = True
    spare_bytes: int = 0
    inverted: bool = False

    def joined(self, tail: bytes = b"") -> bytes:
        """The file as the decoder gets it."""
        return b"".join((*self.pixels, tail))


def exif_orientation(exif: Buffer) -> int:
    """The orientation that an EXIF block (a TIFF header and its first directory) tells; 1 when it tells none.

    Everything else in the block is left unread: it may be damaged, or hold a directory of 65,535 entries.
    """
    exif = bytes(exif).removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    start = int.from_bytes(exif[4:8], "little" if order == "<" else "big")
    count = int.from_bytes(exif[start : start + 2], "little" if order == "<" else "big")
    layout = np.dtype(
        [("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u4"), ("value", "V4")]
    )
    body = exif[start + 2 : start + 2 + count * _ENTRY]
    entries = np.frombuffer(body[: len(body) // _ENTRY * _ENTRY], layout)
    for entry in entries[entries["tag"] == _ORIENTATION][:1]:
        size = {1: 1, 3: 2, 4: 4}.get(int(entry["type"]), 0)
        value = int.from_bytes(entry["value"].tobytes()[:size], "little" if order == "<" else "big")
        return value if 1 <= value <= 8 else 1
    return 1


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
