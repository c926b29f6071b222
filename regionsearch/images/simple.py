"""The structure of formats with little of it: WebP, GIF, BMP, and what libheif and libavif read."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from regionsearch.images import colour
from regionsearch.images.container import (
    MAX_PARTS,
    MIB,
    Buffer,
    Container,
    DamagedError,
    TooIntricateError,
)
from regionsearch.images.exif import exif_orientation

_RLE = (1, 2)
_RLE_BYTES = MIB  # Pillow unpacks them in Python, half a second a MiB
_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIF"
)


def take_apart_gif(data: bytes) -> Container:
    """Finds the first image of a GIF; what stands before it and after it is left out.

    Raises:
        TooIntricateError: Too many blocks before the image.
        DamagedError: No image.
    """
    if len(data) < 13:
        raise DamagedError("it is cut off")
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    header, control = data[:place], b""
    for _ in range(MAX_PARTS):
        kind = data[place : place + 1]
        if kind == bytes([_IMAGE]):
            return Container("GIF", [header, control, memoryview(data)[place:]])
        if kind != bytes([_EXTENSION]):
            raise DamagedError("it has no image")
        if data[place + 1 : place + 3] == bytes([_CONTROL, 4]):
            control = data[place : place + 8]
        place = _blocks_end(data, place + 2)
    raise TooIntricateError(f"more than {MAX_PARTS} extensions")


def _blocks_end(data: bytes, place: int) -> int:
    for _ in range(MAX_PARTS):
        if place >= len(data):
            raise DamagedError("it is cut off")
        length = data[place]
        place += 1 + length
        if length == 0:
            return place
    raise TooIntricateError(f"more than {MAX_PARTS} blocks in an extension")


def take_apart_bmp(data: bytes) -> Container:
    """Looks how a BMP is compressed.

    Raises:
        TooIntricateError: Too much run-length coding.
    """
    compression = int.from_bytes(data[30:34], "little")
    if len(data) > _RLE_BYTES and int.from_bytes(data[14:18], "little") >= 40 and compression in _RLE:
        raise TooIntricateError(f"more than {_RLE_BYTES} bytes of run lengths")
    return Container("BMP", [data])


def brand_format(data: bytes) -> str | None:
    """HEIF or AVIF, by the brands of an ISO file; None for any other."""
    length = int.from_bytes(data[:4], "big")
    box = data[8 : min(length, 1024)]
    brands = [box[:4], *(box[at : at + 4] for at in range(8, len(box), 4))]
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)


def take_apart_iso(data: bytes, file_format: str) -> Container:
    """Looks at what HEIF and AVIF have in common. Their libraries turn and mirror by themselves.

    Raises:
        TooIntricateError: A sequence of too many frames.
    """
    place = -1
    for _ in range(64):
        place = data.find(b"stsz", place + 1)
        if place < 0:
            break
        if int.from_bytes(data[place + 12 : place + 16], "big") > MAX_PARTS:
            raise TooIntricateError(f"more than {MAX_PARTS} frames")
    profile = b""
    at = data.find(b"colrnclx")
    if at >= 0 and len(data) >= at + 12:
        profile = colour.of_code_points(*struct.unpack_from(">HH", data, at + 8), grey=False)
    return Container(file_format, [data], 1, profile, spare_bytes=12)


_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM"})
_PROFILE, _ALPHA, _EXIF, _ANIMATED = 0x20, 0x10, 0x08, 0x02


def take_apart_webp(data: bytes) -> Container:
    """Reads the chunks of a WebP; of an animation the first frame is kept.

    Raises:
        TooIntricateError: Too many chunks.
    """
    kept: list[Buffer] = []
    exif: Buffer = b""
    profile, framed = b"", False
    for name, start, body, end in webp_chunks(data):
        if name == b"VP8X":
            kept.append(_with_flags(data[start : _padded(end)], _ALPHA | _ANIMATED))
        elif name in _PIXELS or (name == b"ANMF" and not framed):
            framed |= name == b"ANMF"
            kept.append(memoryview(data)[start : _padded(end)])
        elif name == b"EXIF":
            exif = memoryview(data)[body:end]
        elif name == b"ICCP" and not profile:
            profile = data[body:end]
    # libwebp's animation decoder has two canvases, and hands a third one out.
    return Container(
        "WEBP", [webp_header(kept), *kept], exif_orientation(exif), profile, spare_bytes=12, exif=exif
    )


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
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


def webp_header(pieces: list[Buffer]) -> bytes:
    """The beginning of a file of these chunks."""
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, pieces))) + b"WEBP"


def webp_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a WebP."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def without_flags(header: bytes, exif: bool) -> bytes:
    """A VP8X chunk that announces no XMP, and EXIF as it is said."""
    return _with_flags(header, _PROFILE | _ALPHA | _ANIMATED, _EXIF * exif)


def _with_flags(header: bytes, kept: int, added: int = 0) -> bytes:
    return header[:8] + bytes([header[8] & kept | added]) + header[9:] if len(header) > 8 else header


def _padded(place: int) -> int:
    return place + place % 2
