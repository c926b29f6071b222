"""Locks: of the record file, one process that writes or any number that read; of calls, which a restore
holds off; and of writes while a collection's name is given to another one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
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


class RestoreLock:
    """Shared by calls until one asks for it alone: then new calls are refused, and running ones awaited."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed: str | None = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Holds the lock together with other calls.

        Raises:
            RegionSearchError: UNAVAILABLE while another call excludes all others.
        """
        with self._changed:
            if self._closed is not None:
                raise RegionSearchError(Kind.UNAVAILABLE, f"{self._closed}: retry later", retry_after_s=1.0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self, why: str) -> Iterator[None]:
        """Holds the lock alone, once the running calls have ended. `why` is the message of refused calls.

        Raises:
            RegionSearchError: UNAVAILABLE while another call excludes all others.
        """
        with self._changed:
            if self._closed is not None:
                raise RegionSearchError(Kind.UNAVAILABLE, f"{self._closed}: retry later", retry_after_s=1.0)
            self._closed = why
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = None


class WriteHolds:
    """Collections whose writes wait for a moment, so that another one can take their name."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._changed = threading.Condition()

    def hold(self, name: str, seconds: float) -> None:
        """Makes writes to a collection wait from now on, at most this long; does nothing for 0 seconds."""
        if seconds > 0:
            with self._changed:
                self._until[name] = time.monotonic() + seconds

    def release(self, name: str) -> None:
        """Lets the writes continue."""
        with self._changed:
            self._until.pop(name, None)
            self._changed.notify_all()

    def wait(self, name: str) -> None:
        """Returns once writes to a collection may continue."""
        if name not in self._until:
            return
        with self._changed:
            while (left := self._until.get(name, 0.0) - time.monotonic()) > 0:
                self._changed.wait(left)
            self._until.pop(name, None)
