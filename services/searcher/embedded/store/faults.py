"""Faults: checksums that notice them, their translation into `RegionSearchError`, and when to try again.

SQLite notices damage to its own structure, but not a bit that has flipped inside of a value. So every row
carries the CRC-32 of its values, written with them and compared whenever they are read. What changes in place
(`removed`, counters) is covered by the checks of `verification`.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError

Value = int | float | str | bytes | None

_NAMES = {kind: kind.__name__.encode() for kind in (int, float, str, bytes, type(None))}
_INDEXED = struct.Struct("<qqqqqddq")
_BOX = struct.Struct("<4d")


class DamagedRowError(Exception):
    """A row is not what was written. The text names it."""


def of_values(*values: Value) -> int:
    """Checksum of the values of a collection or an image."""
    parts: list[bytes] = []
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        parts.append(b"%s%d:%s" % (_NAMES[type(value)], len(data), data))
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


_AS_SQLITE = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.ENOENT: sqlite3.SQLITE_CANTOPEN,
    errno.EACCES: sqlite3.SQLITE_PERM,
    errno.EPERM: sqlite3.SQLITE_PERM,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EIO: sqlite3.SQLITE_IOERR,
}


def damaged(path: Path, why: str) -> RegionSearchError:
    """A DATA_LOSS error that names the file."""
    return RegionSearchError(
        Kind.DATA_LOSS,
        f"{path.name} is damaged or foreign ({why}): restore a sound snapshot; where the searcher does not "
        "start, move the file away before that",
        metadata={"file": path.name},
    )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Translates errors of SQLite and of the file system, and damaged rows.

    The errors name the file and the remedy.
    """
    try:
        yield
    except DamagedRowError as error:
        raise damaged(path, str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise explain(error, path) from error


def explain(error: sqlite3.Error | OSError, path: Path) -> RegionSearchError:
    """Translates one error of SQLite or of the file system."""
    if isinstance(error, OSError):
        code = _AS_SQLITE.get(error.errno or 0, sqlite3.SQLITE_ERROR)
    else:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:  # no room for its index
            code = sqlite3.SQLITE_FULL
    if code == sqlite3.SQLITE_FULL:
        return RegionSearchError(
            Kind.STORAGE_FULL, f"no space left for {path.name}: free some disk space; reads continue"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{path.name} cannot be written or opened ({error}): check the folder's permissions",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RegionSearchError(
            Kind.UNAVAILABLE,
            f"{path.name} is locked by another program: close it and retry",
            retry_after_s=1.0,
        )
    if code == sqlite3.SQLITE_IOERR:
        return RegionSearchError(Kind.INTERNAL, f"the disk failed under {path.name} ({error}): check it")
    return RegionSearchError(Kind.INTERNAL, f"{path.name}: {error}")


_REPEAT_S = 600.0
_FIRST_S = 1.0
_LONGEST_S = 60.0


class LogThrottle:
    """Throttles repeated log messages to one in ten minutes."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def due(self, message: str) -> bool:
        """Whether the message should be logged now."""
        now = time.monotonic()
        if now - self._logged.get(message, -_REPEAT_S) < _REPEAT_S:
            return False
        self._logged[message] = now
        return True

    def reset(self) -> None:
        """After a success: the next failure counts as new."""
        self._logged.clear()


class Backoff:
    """Exponential backoff: a second, doubled by each failure up to a minute."""

    def __init__(self, first_s: float = _FIRST_S) -> None:
        self._first_s = first_s
        self.delay_s = first_s

    def failed(self) -> None:
        """Doubles the delay."""
        self.delay_s = min(2 * self.delay_s, max(_LONGEST_S, self._first_s))

    def succeeded(self) -> None:
        """Resets the delay."""
        self.delay_s = self._first_s
