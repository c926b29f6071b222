"""The structure of a JPEG: its segments, up to the end marker and no further."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from regionsearch.images.container import (
    MAX_PARTS,
    Buffer,
    Container,
    DamagedError,
    TooIntricateError,
)
from regionsearch.images.exif import exif_orientation

START, END = b"\xff\xd8", b"\xff\xd9"
MAX_SCANS = 64
"""libjpeg goes through the whole image for each. Encoders write some ten; an empty one takes ten bytes."""

_SCAN, _RESTARTS = 0xDA, range(0xD0, 0xD8)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
_TABLES = frozenset({0xC4, 0xDB, 0xDD})
_EXIF, _ICC, _ADOBE = 0xE1, 0xE2, 0xEE
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ICC_NAME = b"ICC_PROFILE\0"


def take_apart(data: bytes) -> Container:
    """Reads the segments of a JPEG.

    Raises:
        TooIntricateError: Too many scans or segments.
        DamagedError: No frame, or arithmetic coding, which no browser reads either.
    """
    kept: list[Buffer] = [START]
    chunks: dict[int, Buffer] = {}
    exif: Buffer = b""
    scans, spare, progressive, ended = 0, 0.0, False, False
    for marker, start, body, end in segments(data):
        if marker == END[1]:
            ended = True
            kept.append(END)
        elif marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise TooIntricateError(f"more than {MAX_SCANS} scans")
            kept.append(memoryview(data)[start:end])
        elif is_pixels(marker):
            if marker in _FRAMES:
                if marker in _ARITHMETIC:
                    raise DamagedError("arithmetic coding is not supported")
                spare, progressive = _coefficient_bytes(data[body:end]), marker == 0xC2
            kept.append(memoryview(data)[start:end])
        elif marker == _EXIF and not exif and data.startswith(b"Exif\0\0", body):
            exif = memoryview(data)[body + 6 : end]
        elif is_profile(data, marker, body) and end - body > 14:
            chunks.setdefault(data[body + 12], memoryview(data)[body + 14 : end])
    # The coefficients of all scans but a single one wait in memory.
    return Container(
        "JPEG",
        kept,
        exif_orientation(exif),
        b"".join(chunks[number] for number in sorted(chunks)),
        has_end=ended,
        spare_bytes=int(spare + 0.99) if progressive or scans > 1 else 0,
        exif=exif,
    )


def segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The segments of a JPEG up to its end: marker, where it starts, where its body starts, where it ends.

    A scan ends where its coded data ends. The last one is the end marker, unless the data ends before.

    Raises:
        TooIntricateError: More than `MAX_PARTS`.
    """
    place = len(START)
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, place)
        if found is None:
            return
        start, body = found.start(), found.end()
        marker = data[body - 1]
        if marker == END[1]:
            yield marker, start, body, body
            return
        if marker in _RESTARTS or marker in (0x01, START[1]):
            place = body
            continue
        length = int.from_bytes(data[body : body + 2], "big")
        place = min(max(body + 2, body + length), len(data))
        if marker == _SCAN:
            found = _SCAN_END.search(data, place)
            place = len(data) if found is None else found.start()
        yield marker, start, body + 2, place
    raise TooIntricateError(f"more than {MAX_PARTS} segments")


def _coefficient_bytes(frame: bytes) -> float:
    """Bytes a pixel of all coefficients, of two bytes each, by the sampling of the components."""
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5] or not frame[5]:
        raise DamagedError("a frame header is cut off")
    factors = [divmod(factor, 16) for factor in frame[7 : 6 + 3 * frame[5] : 3]]
    widest, tallest = max(h for h, _ in factors), max(v for _, v in factors)
    return sum(2 * h * v for h, v in factors) / max(1, widest * tallest)


def is_pixels(marker: int) -> bool:
    """Whether a decoder needs the segments of a marker."""
    return marker in _TABLES or marker in _FRAMES or marker in (_ADOBE, _SCAN, END[1])


def is_profile(data: bytes, marker: int, body: int) -> bool:
    """Whether a segment is a part of the ICC profile."""
    return marker == _ICC and data.startswith(_ICC_NAME, body)


def exif_segment(orientation: int) -> bytes:
    """A segment with an orientation and nothing else."""
    body = b"Exif\0\0" + orientation_exif(orientation)
    return struct.pack(">BBH", 0xFF, _EXIF, len(body) + 2) + body


def orientation_exif(orientation: int) -> bytes:
    """An EXIF block with an orientation and nothing else."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
