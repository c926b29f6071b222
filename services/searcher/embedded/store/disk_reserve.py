"""Disk space that is reserved for deletions, so that a full disk can be emptied."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from regionsearch.errors import Kind, RegionSearchError

T = TypeVar("T")

FILE_NAME = "reserve"
_LARGEST_PART = 0.1  # of the file system
_PARTS = 8
_LEAST_PART = 128 << 10


class DiskReserve:
    """A file that holds space until a deletion needs it, and a limit for everything else.

    Args:
        folder: Where the file lies.
        size: Its bytes; less on a small file system.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._size = size
        self._lock = threading.Lock()

    def size(self) -> int:
        """Bytes that are reserved on this disk."""
        try:
            return self._space()[1]
        except OSError:
            return self._size

    def fill(self) -> None:
        """Allocates the file where there is plenty of space; otherwise a later call does."""
        with self._lock, contextlib.suppress(OSError):
            free, size = self._space()
            have = self._path.stat().st_size if self._path.exists() else 0
            if size and have < size and free > 4 * size:
                with self._path.open("ab") as file:
                    os.posix_fallocate(file.fileno(), 0, size)

    def spend(self) -> bool:
        """Frees a part of the reserve for a deletion; returns whether there was any left.

        Only a part, because other writers may take what is freed.
        """
        with self._lock, contextlib.suppress(OSError):
            have = self._path.stat().st_size
            os.truncate(self._path, max(have - max(self._space()[1] // _PARTS, _LEAST_PART), 0))
            return have > 0
        return False

    def deleting(self, submit: Callable[[], Future[T]]) -> T:
        """Waits for a write that frees space; on a full disk it gets the reserve."""
        try:
            return submit().result()
        except RegionSearchError as error:
            if error.kind is not Kind.STORAGE_FULL:
                raise
            failure = error
        while self.spend():
            try:
                return submit().result()
            except RegionSearchError as error:
                if error.kind is not Kind.STORAGE_FULL:
                    raise
        raise failure

    def require(self, nbytes: int = 0) -> None:
        """Refuses a write that would take the space that deletions need.

        Args:
            nbytes: What is going to be written, where that is known.

        Raises:
            RegionSearchError: STORAGE_FULL.
        """
        try:
            free, size = self._space()
        except OSError:  # the writer is told why
            return
        if free < size + nbytes:
            raise RegionSearchError(
                Kind.STORAGE_FULL,
                f"{free >> 20} MiB are free on the disk, {(size + nbytes) >> 20} MiB are needed "
                "(embedded.reserve_bytes): delete images or free disk space; reads and deletions continue",
            )

    def _space(self) -> tuple[int, int]:
        """Free bytes, and how many of them are reserved."""
        found = os.statvfs(self._folder)
        whole = found.f_blocks * found.f_frsize
        return found.f_bavail * found.f_frsize, min(self._size, int(whole * _LARGEST_PART))
