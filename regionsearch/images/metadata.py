"""Removes metadata from files: where and when an image was taken, by whom, with what."""

from __future__ import annotations

from regionsearch.images import jpeg, png, simple
from regionsearch.images.container import Buffer

LOSSLESS = frozenset({"image/jpeg", "image/png", "image/webp", "image/bmp"})
"""Content types of which `without_metadata` makes a file with the very same pixels."""

_JFIF, _TEXTS = 0xE0, frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"})
_PUBLIC = 0x20  # a bit of a PNG chunk's second letter that public chunks lack
_WEBP = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})


def without_metadata(data: bytes) -> bytes:
    """The file without EXIF, XMP, IPTC, comments, previews and what follows its end.

    Pixels, orientation, colour profile and animation stay, bit by bit.

    Args:
        data: A file of one of the types in `LOSSLESS`.

    Raises:
        DamagedError, TooIntricateError: It has not been through an `EncodedImage`.
    """
    if data.startswith(jpeg.START):
        return _jpeg(data)
    if data.startswith(png.SIGNATURE):
        return _png(data)
    return _webp(data) if data.startswith(b"RIFF") else data


def _jpeg(data: bytes) -> bytes:
    view = memoryview(data)
    orientation = jpeg.take_apart(data).orientation
    first: list[Buffer] = [jpeg.START]
    rest: list[Buffer] = [jpeg.exif_segment(orientation)] if orientation != 1 else []
    for marker, start, body, end in jpeg.segments(data):
        if marker == _JFIF and data.startswith(b"JFIF\0", body):
            first.append(view[start:end])  # which JFIF wants at the beginning
        elif jpeg.is_pixels(marker) or jpeg.is_profile(data, marker, body):
            rest.append(view[start:end])
    return b"".join(first + rest)


def _png(data: bytes) -> bytes:
    view = memoryview(data)
    orientation = png.take_apart(data).orientation
    told = png.chunk(b"eXIf", jpeg.orientation_exif(orientation)) if orientation != 1 else b""
    parts: list[Buffer] = [png.SIGNATURE]
    for name, start, _, end in png.chunks(data):
        if name not in _TEXTS and not name[1] & _PUBLIC:
            parts.append(view[start : end + 4])
        if name == b"IHDR":
            parts.append(told)
    return b"".join(parts)


def _webp(data: bytes) -> bytes:
    view, parts = memoryview(data), list[Buffer]()
    orientation = simple.take_apart_webp(data).orientation
    extended = False
    for name, start, _, end in simple.webp_chunks(data):
        if name == b"VP8X":
            extended = True
            parts.append(simple.without_flags(data[start:end], orientation != 1))
        elif name in _WEBP:
            parts.append(view[start : end + end % 2])
    if extended and orientation != 1:
        parts.append(simple.webp_chunk(b"EXIF", jpeg.orientation_exif(orientation)))
    return b"".join([simple.webp_header(parts), *parts])
