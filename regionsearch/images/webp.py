"""The structure of a WebP: the chunks of its RIFF."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from regionsearch.images.container import Buffer, Container, exif_orientation
from regionsearch.images.limits import MAX_PARTS, TooIntricateError

_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM"})
_PROFILE, _ALPHA, _EXIF, _ANIMATED = 0x20, 0x10, 0x08, 0x02


def take_apart(data: bytes) -> Container:
    """Reads the chunks of a WebP; of an animation the first frame is kept.

    Raises:
        TooIntricateError: Too many chunks.
    """
    kept: list[Buffer] = []
    orientation, profile, framed = 1, b"", False
    for name, start, body, end in chunks(data):
        if name == b"VP8X":
            kept.append(_with_flags(data[start : _padded(end)], _ALPHA | _ANIMATED))
        elif name in _PIXELS or (name == b"ANMF" and not framed):
            framed |= name == b"ANMF"
            kept.append(memoryview(data)[start : _padded(end)])
        elif name == b"EXIF":
            orientation = exif_orientation(data[body:end])
        elif name == b"ICCP" and not profile:
            profile = data[body:end]
    # libwebp's animation decoder has two canvases, and hands a third one out.
    return Container("WEBP", [riff_header(kept), *kept], orientation, profile, spare_bytes=12)


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """The chunks of a WebP: name, where it starts, where its body starts and ends. The last may be cut off.

    Raises:
        TooIntricateError: More than `MAX_PARTS`.
    """
    place = 12
    size = min(len(data), _padded(8 + int.from_bytes(data[4:8], "little")))
    for _ in range(MAX_PARTS):
        if place + 8 > size:
            return
        name, length = struct.unpack_from("<4sI", data, place)
        end = min(place + 8 + length, len(data))
        yield name, place, place + 8, end
        place = _padded(end)
    raise TooIntricateError(f"more than {MAX_PARTS} chunks")


def riff_header(pieces: list[Buffer]) -> bytes:
    """The beginning of a file of these chunks."""
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, pieces))) + b"WEBP"


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def without_flags(header: bytes, exif: bool) -> bytes:
    """A VP8X chunk that announces no XMP, and EXIF as it is said."""
    return _with_flags(header, _PROFILE | _ALPHA | _ANIMATED, _EXIF * exif)


def _with_flags(header: bytes, kept: int, added: int = 0) -> bytes:
    return header[:8] + bytes([header[8] & kept | added]) + header[9:] if len(header) > 8 else header


def _padded(place: int) -> int:
    return place + place % 2
