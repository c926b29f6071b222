"""File lock of a record file: one process that writes, or any number that read."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.store.faults import explained


class StoreLock:
    """Locks a record file against other processes, until `release` or the end of this process.

    The file itself is locked, not one next to it that somebody may delete. SQLite's own locks are of another
    kind; they do not meet.

    Args:
        path: The record file; a process that writes creates it.
        shared: For processes that only read: they exclude the one that writes, not each other.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when another process uses the file.
    """

    def __init__(self, path: Path, *, shared: bool) -> None:
        self._path = path
        mode = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        with explained(path):
            self._descriptor: int | None = os.open(path, mode | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._descriptor, operation)
            except OSError as error:
                self.release()
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                use = "writes to" if shared else "uses"
                raise RegionSearchError(
                    Kind.FAILED_PRECONDITION,
                    f"another searcher {use} the data folder {path.parent}: stop it, or give this one its "
                    "own",
                ) from error

    def check(self) -> None:
        """Checks that the path still names the locked file.

        Raises:
            RegionSearchError: FAILED_PRECONDITION when the file was moved, deleted or replaced.
        """
        assert self._descriptor is not None
        try:
            now = self._path.stat()
        except FileNotFoundError:
            now = None
        own = os.fstat(self._descriptor)
        if now is None or (now.st_dev, now.st_ino) != (own.st_dev, own.st_ino):
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"{self._path.name} was moved, deleted or replaced while the searcher used it: restart the "
                "searcher on the file that it is to use",
            )

    def release(self) -> None:
        """Unlocks the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
