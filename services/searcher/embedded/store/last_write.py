"""The number of the last write, kept outside of SQLite, so that a missing log is noticed."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import structlog

from regionsearch.errors import Kind, RegionSearchError

_CONTENT = struct.Struct("<qI")
_log = structlog.get_logger(__name__)


class LastWrite:
    """A small file next to the record file that is written after each commit.

    It is never ahead of the record file: it is written later, and not synchronised. So whatever it says has
    been committed.

    Args:
        record_file: The record file.
        read_only: Only compare.
    """

    def __init__(self, record_file: Path, *, read_only: bool) -> None:
        self._record_file = record_file
        self._path = record_file.with_name(f"{record_file.name}-seq")
        self._read_only = read_only
        self._descriptor: int | None = None

    def check(self, seq: int) -> None:
        """Compares the record file's last write with the remembered one.

        Raises:
            RegionSearchError: DATA_LOSS when writes are missing.
        """
        remembered = self._read()
        if remembered > seq:
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{self._record_file.name} ends with write {seq}, but write {remembered} was answered: its "
                f"log {self._record_file.name}-wal is missing, or it is an older copy. Put it back; or, to "
                f"go on without those writes, delete {self._path.name}",
                metadata={"file": self._record_file.name},
            )

    def note(self, seq: int) -> None:
        """Remembers a write that is on disk. Best effort: what it guards against is rare."""
        if self._read_only:
            return
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            number = struct.pack("<q", seq)
            os.pwrite(self._descriptor, _CONTENT.pack(seq, zlib.crc32(number)), 0)

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> int:
        try:
            seq, checksum = _CONTENT.unpack(self._path.read_bytes())
        except FileNotFoundError:
            return 0
        except (OSError, struct.error) as error:
            _log.warning("the last write's number cannot be read", file=self._path.name, reason=str(error))
            return 0
        return int(seq) if checksum == zlib.crc32(struct.pack("<q", seq)) else 0
