"""Translates errors of SQLite and of the file system, and damage, into `RegionSearchError`."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.store.checksums import DamagedRowError

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
