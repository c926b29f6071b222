"""Checksums of rows, so that a value which the disk has changed is noticed.

SQLite notices damage to its own structure, but not a bit that has flipped inside of a value. So every row
carries the CRC-32 of its values, written with them and compared whenever they are read. What changes in place
(`removed`, counters) is covered by the checks of `verify`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

Value = int | float | str | bytes | None

_INDEXED = struct.Struct("<qqqqqddq")
_BOX = struct.Struct("<4d")


class DamagedRowError(Exception):
    """A row is not what was written. The text names it."""


def of_values(*values: Value) -> int:
    """Checksum of the values of a collection or an image."""
    parts: list[bytes] = []
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        parts.append(b"%s%d:" % (type(value).__name__.encode(), len(data)))
        parts.append(data)
    return zlib.crc32(b"".join(parts))


def of_vector(record_rowid: int, value: bytes) -> int:
    """Checksum of a stored vector, bound to its record."""
    return zlib.crc32(value, record_rowid & 0xFFFFFFFF)


def of_indexed(values: Sequence[float]) -> int:
    """Checksum of the values that the index holds of a record.

    Args:
        values: Collection, record and image rowid, level, area, predicted_iou, stability_score, added.
    """
    return zlib.crc32(_INDEXED.pack(*values))


def of_indexed_rows(rows: bytes, row_bytes: int) -> list[int]:
    """Checksums as of `of_indexed` of many records; each row begins with the packed values."""
    return [zlib.crc32(rows[start : start + _INDEXED.size]) for start in range(0, len(rows), row_bytes)]


def of_body(record_rowid: int, record_id: str, box: Sequence[float | None], attributes: str | None) -> int:
    """Checksum of what hits show of a record in addition.

    Args:
        record_rowid: The record's rowid.
        record_id: Its public id.
        box: Its four edges, or four times None.
        attributes: As JSON, or None.
    """
    text = zlib.crc32(f"{record_rowid}\0{record_id}\0{attributes}".encode())
    return text if None in box else zlib.crc32(_BOX.pack(*box), text)


def of_mask(record_rowid: int, height: int | None, width: int | None, counts: bytes | None) -> int | None:
    """Checksum of a record's mask; None without one."""
    return (
        None
        if counts is None
        else zlib.crc32(counts, zlib.crc32(f"{record_rowid} {height} {width}".encode()))
    )


def require(stored: int | None, actual: int | None, what: str) -> None:
    """Compares a row's checksum with that of its values; rows older than checksums pass.

    Raises:
        DamagedRowError: They differ. `what` names the row.
    """
    if stored is not None and stored != actual:
        raise DamagedRowError(f"the checksum of {what} does not match")
