"""The structure of a TIFF: its first directory; and silence of its library."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regionsearch.images.container import MAX_PARTS, MIB, Container, DamagedError, TooIntricateError

_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274
_STRIPS, _ROWS, _STRIP_SIZES, _PLANES = 273, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_SIZES, _PROFILE = 322, 323, 324, 325, 34675
_MAX_ENTRIES = 1000
# What decoders need: sizes, samples, compression and its tables, strips and tiles, colours. No other page, no
# EXIF or XMP (Pillow turns a TIFF by either), and nothing that points at other directories.
_PIXELS = frozenset(
    {
        _WIDTH, _LENGTH, _BITS, 259, _PHOTOMETRIC, 266, _STRIPS, 277, _ROWS, _STRIP_SIZES, _PLANES, 292, 293,
        317, 320, _TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_SIZES, 332, 338, 339, 347, *range(512, 522),
        *range(529, 533), 50674,
    }
)  # fmt: skip
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4} | dict.fromkeys(
    (16, 17, 18), 8
)
_SHORT = 3
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_TILE_PIXELS = 1 << 20  # of a tile may be more than the image's


@dataclass(frozen=True)
class _Entry:
    """An entry of the directory.

    Attributes:
        raw: The entry's bytes.
        kind: Number of its type.
        count: Number of values.
        value: The bytes of the values, wherever they are; as far as the file goes.
    """

    raw: bytes
    kind: int
    count: int
    value: memoryview

    def integers(self, order: str) -> NDArray[np.int64]:
        """The values, when they are integers."""
        layout = np.dtype(order + _INTEGERS.get(self.kind, "u1"))
        usable = min(self.count, len(self.value) // layout.itemsize) * layout.itemsize
        return np.frombuffer(self.value[:usable], layout).astype(np.int64)


def take_apart(data: bytes) -> Container:
    """Reads the first directory of a TIFF.

    The decoder gets the file with a new directory at its end, which holds what it needs and leads nowhere.

    Raises:
        TooIntricateError: More entries, strips or tiles than the image needs, or some that stand for the same
            bytes again and again.
        DamagedError: No directory.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    entries = _directory(data, order, big)

    def first(tag: int, default: int = 0) -> int:
        values = entries[tag].integers(order) if tag in entries else np.empty(0, np.int64)
        return int(values[0]) if values.size else default

    width, height = first(_WIDTH), first(_LENGTH)
    _check_parts(data, entries, order, width, height, first)
    deep = first(_BITS, 1) > 8 and (_BITS not in entries or entries[_BITS].count == 1)
    inverted = deep and first(_PHOTOMETRIC) == 0
    if inverted and _PHOTOMETRIC in entries:  # which Pillow knows in some byte orders only, and turns in none
        layout = "HHQH6x" if big else "HHIH2x"
        black_is_zero = struct.pack(order + layout, _PHOTOMETRIC, _SHORT, 1, 1)
        entries[_PHOTOMETRIC] = replace(entries[_PHOTOMETRIC], raw=black_is_zero)
    kept = [entry.raw for tag, entry in sorted(entries.items()) if tag in _PIXELS]
    count, pointer = ("Q", "Q") if big else ("H", "I")
    place = len(data) + len(data) % 2
    directory = struct.pack(order + count, len(kept)) + b"".join(kept) + struct.pack(order + pointer, 0)
    start = 8 if big else 4
    header = data[:start] + struct.pack(order + pointer, place)
    orientation = first(_ORIENTATION, 1)
    return Container(
        "TIFF",
        [header, memoryview(data)[len(header) :], b"\0" * (place - len(data)), directory],
        orientation if 1 <= orientation <= 8 else 1,
        bytes(entries[_PROFILE].value) if _PROFILE in entries else b"",
        inverted=inverted,
        exif=b"" if big else data,
    )


def _directory(data: bytes, order: str, big: bool) -> dict[int, _Entry]:
    try:
        if big:
            (start,) = struct.unpack_from(order + "Q", data, 8)
            (count,) = struct.unpack_from(order + "Q", data, start)
        else:
            (start,) = struct.unpack_from(order + "I", data, 4)
            (count,) = struct.unpack_from(order + "H", data, start)
    except struct.error:
        raise DamagedError("it has no directory") from None
    if count > _MAX_ENTRIES:
        raise TooIntricateError(f"more than {_MAX_ENTRIES} entries in a directory")
    layout, inline = (order + "HHQ8s", 8) if big else (order + "HHI4s", 4)
    size, place = struct.calcsize(layout), start + (8 if big else 2)
    entries: dict[int, _Entry] = {}
    total = 0
    for at in range(place, min(place + count * size, len(data) - size + 1), size):
        tag, kind, values, value = struct.unpack_from(layout, data, at)
        length = values * _SIZES.get(kind, 0)
        body = memoryview(data)[at + size - inline : at + size][:length]
        if length > inline:
            where = int.from_bytes(value, "little" if order == "<" else "big")
            body = memoryview(data)[where : where + length]
            total += len(body)
        if length:
            entries.setdefault(tag, _Entry(data[at : at + size], kind, values, body))
    if total > len(data):
        raise TooIntricateError("entries that share their bytes")
    return entries


def _check_parts(
    data: bytes, entries: dict[int, _Entry], order: str, width: int, height: int, first: Callable[..., int]
) -> None:
    planes = 6 if first(_PLANES, 1) == 2 else 1  # Pillow reads no more samples
    tile_width, tile_length = first(_TILE_WIDTH, width), first(_TILE_LENGTH, height)
    if _TILES in entries and tile_width * tile_length > 4 * width * height + _TILE_PIXELS:
        raise TooIntricateError("tiles far larger than the image")
    rows = max(1, first(_ROWS, height))
    needed = {
        _STRIPS: -(-height // rows) * planes,
        _TILES: -(-width // max(1, tile_width)) * -(-height // max(1, tile_length)) * planes,
    }
    for tag, sizes, name in ((_STRIPS, _STRIP_SIZES, "strips"), (_TILES, _TILE_SIZES, "tiles")):
        if tag not in entries:
            continue
        count = max(entry.count for at in (tag, sizes) if (entry := entries.get(at)) is not None)
        if count > max(1, min(needed[tag], MAX_PARTS)):
            raise TooIntricateError(f"{count} {name}, more than it needs or than {MAX_PARTS}")
        lengths = entries[sizes].integers(order) if sizes in entries else np.zeros(1, np.int64)
        if int(np.minimum(lengths, len(data)).sum()) > 2 * len(data) + MIB:
            raise TooIntricateError(f"{name} that share their bytes")


def silence_libtiff() -> None:
    """Takes libtiff's handlers of errors and warnings away, for this process; errors still reach the caller.

    Pillow has no way to do it. Where its libtiff is not a library of its own, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        loaded = Path("/proc/self/maps").read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in loaded if "/libtiff" in line}
        for path in paths:
            library = ctypes.CDLL(path)
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
