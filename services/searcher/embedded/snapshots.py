"""Snapshot files: one SQLite file each, the same format as the record store's."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from services.searcher.embedded.database import (
    Database,
    check_identity,
    check_integrity,
    connect,
    explained,
    prepare,
)
from services.searcher.embedded.opening import check_content
from services.searcher.embedded.reads import last_seq
from services.searcher.embedded.schema import MIGRATIONS
from services.searcher.reports import SnapshotInfo

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_UNFINISHED = re.compile(r"\..+\.(part|restoring)(-wal|-shm|-journal)?")  # no snapshot's name begins so


def clear(folder: Path) -> None:
    """Deletes what a process left that died writing or reading a snapshot: files as large as the store."""
    with explained(folder):
        for file in folder.iterdir() if folder.is_dir() else ():
            if _UNFINISHED.fullmatch(file.name):
                file.unlink()


def take(database: Database, folder: Path, name: str) -> SnapshotInfo:
    """Copies the store to a new file while it is being read and written.

    Raises:
        RegionSearchError: ALREADY_EXISTS; STORAGE_FULL and the like, which leave no half file.
    """
    target = _path(folder, name)
    with explained(target):
        folder.mkdir(exist_ok=True)
        if target.exists():
            raise RegionSearchError(
                Kind.ALREADY_EXISTS, f"there is a snapshot {name!r} already", field="name"
            )
        database.copy_to(target)
        with contextlib.closing(connect(target, read_only=True)) as copy:
            return SnapshotInfo(name, target.stat().st_size, last_seq(copy))


@contextlib.contextmanager
def prepared(folder: Path, name: str) -> Iterator[Path]:
    """A checked copy of a snapshot in today's format, ready to replace the store; the snapshot itself stays.

    Raises:
        RegionSearchError: NOT_FOUND; DATA_LOSS for a damaged or foreign file; FAILED_PRECONDITION for a
            newer one.
    """
    source = _path(folder, name)
    if not source.is_file():
        raise not_found("name", f"there is no snapshot {name!r} in {folder.name}")
    copy = folder / f".{name}.restoring"
    try:
        with explained(source):
            shutil.copyfile(source, copy)
            with contextlib.closing(connect(copy)) as connection:
                check_identity(connection, source, MIGRATIONS)
                check_integrity(connection, source)
                prepare(connection, source, MIGRATIONS)
                check_content(connection, source)
                connection.execute("PRAGMA journal_mode = DELETE")
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise invalid("name", "a snapshot's name is 1 to 128 of letters, digits, '.', '_' and '-'")
    return folder / name
