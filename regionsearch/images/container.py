"""The parts of an image file: what its decoder needs, and its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

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
