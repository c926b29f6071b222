"""The structure of a PNG: its chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from regionsearch.images.colour import MAX_PROFILE_BYTES, SRGB_PRIMARIES, Primaries, of_code_points, of_gamma
from regionsearch.images.container import MAX_PARTS, Buffer, Container, TooIntricateError
from regionsearch.images.exif import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_COLOUR = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
_SRGB_GAMMA = 45_455
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def take_apart(data: bytes) -> Container:
    """Reads the chunks of a PNG, those behind the pixels too.

    Raises:
        TooIntricateError: Too many chunks.
    """
    kept: list[Buffer] = [SIGNATURE]
    colour: dict[bytes, bytes] = {}
    exif: Buffer = b""
    ended = False
    for name, start, body, end in chunks(data):
        if name in _PIXELS:
            kept.append(memoryview(data)[start : end + 4])
            ended = name == b"IEND"
        elif name in _COLOUR:
            colour.setdefault(name, data[body:end])
        elif name == b"eXIf":
            exif = memoryview(data)[body:end]
    profile = _profile(colour, data[25:26] in b"\0\4")
    return Container("PNG", kept, exif_orientation(exif), profile, has_end=ended, exif=exif)


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """The chunks of a PNG: name, where it starts, where its body starts and ends. The last may be cut off.

    Raises:
        TooIntricateError: More than `MAX_PARTS`.
    """
    place = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        if place + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, place)
        end = min(place + 8 + length, len(data))
        yield name, place, place + 8, end
        if name == b"IEND":
            return
        place = end + 4
    raise TooIntricateError(f"more than {MAX_PARTS} chunks")


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def has_all_rows(pieces: Sequence[Buffer]) -> bool:
    """Whether the compressed data of a PNG that lacks its end holds every row.

    Args:
        pieces: The file as its container has it.
    """
    data = b"".join(pieces)
    if len(data) < 29:
        return False
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0) * bits
    missing = _raw_bytes(width, height, samples, bool(interlaced))
    inflater = zlib.decompressobj()
    for name, _, body, end in chunks(data):
        rest: bytes = data[body:end] if name == b"IDAT" else b""
        while rest and missing > 0:
            try:
                missing -= len(inflater.decompress(rest, 1 << 20))
            except zlib.error:
                return False
            rest = inflater.unconsumed_tail
    return missing <= 0


def _raw_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows with their filters."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _profile(colour: dict[bytes, bytes], grey: bool) -> bytes:
    """The profile that the colour chunks mean; of several, the one that the PNG specification ranks first."""
    if len(code := colour.get(b"cICP", b"")) >= 4 and code[2] == 0:
        return of_code_points(code[0], code[1], grey)
    if b"iCCP" in colour:
        _, _, packed = colour[b"iCCP"].partition(b"\0")
        try:
            return zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES)
        except zlib.error:
            return b""
    if b"sRGB" in colour or len(colour.get(b"gAMA", b"")) != 4:
        return b""
    (gamma,) = struct.unpack(">I", colour[b"gAMA"])
    if gamma == 0:
        return b""
    primaries = SRGB_PRIMARIES
    if len(given := colour.get(b"cHRM", b"")) == 32:
        white_x, white_y, *others = (value / 100_000 for value in struct.unpack(">8I", given))
        primaries = Primaries((white_x, white_y), *zip(others[::2], others[1::2], strict=True))
    if abs(gamma - _SRGB_GAMMA) < _SRGB_GAMMA // 50 and primaries.near(SRGB_PRIMARIES):
        return b""  # how programs say sRGB in other words
    return of_gamma(100_000 / gamma, primaries, grey)
