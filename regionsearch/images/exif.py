"""Reads the few facts of an EXIF block that matter here: orientation, capture time, camera, position.

A block may be damaged or made to do harm: of each directory only the wanted entries are read, and of each
value only as much as it can need.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from datetime import datetime

import numpy as np

from regionsearch.images.container import Buffer

TAKEN_AT, CAMERA, PLACE = "taken_at", "camera", "place"
"""Attributes of images: ISO 8601, with an offset from UTC if the camera knew it; text; latitude,longitude."""

_ORIENTATION, _MAKE, _MODEL, _EXIF_IFD, _GPS_IFD = 0x0112, 0x010F, 0x0110, 0x8769, 0x8825
_TAKEN = ((0x9003, 0x9011), (0x9004, 0x9012))  # original, digitized: the time and its offset from UTC
_SIGN = {"N": 1, "S": -1, "E": 1, "W": -1}
_ENTRY = 12  # bytes of a directory's entry
_MAX_VALUE = 128  # bytes that are read of a value
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 13: 4}  # bytes of a BYTE, ASCII, SHORT, LONG, RATIONAL, IFD


def exif_orientation(exif: Buffer) -> int:
    """The orientation of a block (a TIFF header and its first directory), 1 to 8; 1 when it states none."""
    block = _Block.read(exif)
    value = 1 if block is None else block.first((_ORIENTATION,)).number(_ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def photo_facts(exif: Buffer) -> dict[str, str]:
    """When, with what and where a photograph was taken, as attributes; what is not stated is left out."""
    block = _Block.read(exif)
    if block is None:
        return {}
    first = block.first((_MAKE, _MODEL, _EXIF_IFD, _GPS_IFD))
    details = block.directory(first.number(_EXIF_IFD, 0), [tag for pair in _TAKEN for tag in pair])
    gps = block.directory(first.number(_GPS_IFD, 0), (1, 2, 3, 4))
    make, model = first.text(_MAKE), first.text(_MODEL)
    facts = {
        TAKEN_AT: next(filter(None, (_time(details.text(at), details.text(utc)) for at, utc in _TAKEN)), ""),
        CAMERA: model if model.startswith(make) else f"{make} {model}".strip(),
        PLACE: _place(gps),
    }
    return {name: value for name, value in facts.items() if value}


def _time(text: str, offset: str) -> str:
    try:
        time = datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S")  # most cameras know no zone
    except ValueError:
        return ""
    return time.isoformat() + (offset if re.fullmatch(r"[+-]([01]\d|2[0-3]):[0-5]\d", offset) else "")


def _place(gps: _Directory) -> str:
    degrees: list[float] = []
    for reference, tag, most in ((1, 2, 90), (3, 4, 180)):
        parts, sign = gps.rationals(tag), _SIGN.get(gps.text(reference), 0)
        value = sign * sum(part / 60**power for power, part in enumerate(parts))
        if not sign or len(parts) != 3 or abs(value) > most:
            return ""
        degrees.append(value)
    return "{:.6f},{:.6f}".format(*degrees)


class _Block:
    """An EXIF block, or a TIFF file, which begins like one."""

    def __init__(self, data: memoryview, order: str) -> None:
        self.data = data
        self.order = order

    @classmethod
    def read(cls, exif: Buffer) -> _Block | None:
        data = memoryview(exif)
        data = data[6:] if bytes(data[:6]) == b"Exif\0\0" else data
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(data[:4]))
        return None if order is None or len(data) < 10 else cls(data, order)

    def first(self, tags: Collection[int]) -> _Directory:
        return self.directory(struct.unpack_from(f"{self.order}I", self.data, 4)[0], tags)

    def directory(self, start: int, tags: Collection[int]) -> _Directory:
        """The values of those tags in the directory that starts there, by tag; the first of each."""
        count = int.from_bytes(self.data[start : start + 2], "little" if self.order == "<" else "big")
        o = self.order
        layout = np.dtype([("tag", f"{o}u2"), ("type", f"{o}u2"), ("count", f"{o}u4"), ("value", "V4")])
        body = self.data[start + 2 : start + 2 + count * _ENTRY] if start else self.data[:0]
        entries = np.frombuffer(body[: len(body) // _ENTRY * _ENTRY], layout)
        values: dict[int, tuple[int, bytes]] = {}
        for entry in entries[np.isin(entries["tag"], list(tags))][: 2 * len(tags)]:
            kind, inline = int(entry["type"]), entry["value"].tobytes()
            size = min(_SIZES.get(kind, 0) * int(entry["count"]), _MAX_VALUE)
            at = struct.unpack(f"{self.order}I", inline)[0]
            value = inline[:size] if size <= len(inline) else bytes(self.data[at : at + size])
            values.setdefault(int(entry["tag"]), (kind, value))
        return _Directory(self.order, values)


class _Directory:
    """Values by tag, each with its type."""

    def __init__(self, order: str, values: dict[int, tuple[int, bytes]]) -> None:
        self._order = order
        self._values = values

    def number(self, tag: int, default: int) -> int:
        kind, value = self._values.get(tag, (0, b""))
        size = _SIZES[kind] if kind in (1, 3, 4, 13) else 0
        number = int.from_bytes(value[:size], "little" if self._order == "<" else "big")
        return number if size and len(value) >= size else default

    def text(self, tag: int) -> str:
        text = self._values.get(tag, (0, b""))[1].split(b"\0")[0].decode(errors="ignore")
        return "".join(filter(str.isprintable, text)).strip()

    def rationals(self, tag: int) -> list[float]:
        value = self._values.get(tag, (0, b""))[1]
        whole = value[: len(value) // 8 * 8]
        pairs = struct.iter_unpack(f"{self._order}II", whole)
        return [above / below for above, below in pairs if below]
