"""The structure of formats with little of it: GIF, BMP, and the containers that libheif and libavif read."""

from __future__ import annotations

import struct

from regionsearch.images import profiles
from regionsearch.images.container import Container
from regionsearch.images.limits import MAX_PARTS, MIB, DamagedError, TooIntricateError

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
        profile = profiles.of_code_points(*struct.unpack_from(">HH", data, at + 8), grey=False)
    return Container(file_format, [data], 1, profile, spare_bytes=12)
