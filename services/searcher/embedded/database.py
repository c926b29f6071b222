"""The SQLite file: opening, checking, errors in our words, copies.

What an answered write survives: the file is in WAL mode with ``synchronous=FULL``, so a commit has been
handed to the disk with fdatasync before it is answered. It survives the death of the process, of the
operating system and of the power, as far as the disk keeps its own word on synchronisation. It does not
survive the loss of the
disk: take snapshots for that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.checksums import DamagedRowError
from services.searcher.embedded.schema import APPLICATION_ID, MIGRATIONS, PAGE_SIZE

FILE_NAME = "records.sqlite"
_BUSY_TIMEOUT_S = 10.0
_AS_SQLITE = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EACCES: sqlite3.SQLITE_PERM,
    errno.EPERM: sqlite3.SQLITE_PERM,
    errno.EROFS: sqlite3.SQLITE_READONLY,
    errno.EIO: sqlite3.SQLITE_IOERR,
}


class Database:
    """One record file with one writing connection and one reading connection a thread.

    Args:
        path: The file; it is created when its folder is writable.
        read_only: Open for reading only, as from a read-only folder.

    Raises:
        RegionSearchError: DATA_LOSS for a damaged or foreign file, FAILED_PRECONDITION for one that is
            newer than this program or a folder that cannot be written.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        with explained(path):
            if read_only:
                self.writer = connect(path, read_only=True)
                check_identity(self.writer, path, MIGRATIONS)
            else:
                self.writer = connect(path)
                prepare(self.writer, path, MIGRATIONS)

    def reader(self) -> sqlite3.Connection:
        """This thread's reading connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with explained(self.path):
                connection = connect(self.path, read_only=self.read_only)
                connection.execute("PRAGMA query_only = 1")
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A consistent view for several statements, with errors in our words."""
        connection = self.reader()
        with explained(self.path):
            if connection.in_transaction:  # nested: the outer one already fixed the view
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def copy_to(self, target: Path) -> None:
        """Writes a consistent copy while reading and writing go on; the copy is synchronised to disk.

        Raises:
            RegionSearchError: STORAGE_FULL and the like; no half file is left then.
        """
        temporary = target.with_name(f".{target.name}.part")  # no snapshot's name begins so
        temporary.unlink(missing_ok=True)
        source = connect(self.path, read_only=self.read_only)
        try:
            with explained(target), contextlib.closing(sqlite3.connect(temporary)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
            _synchronise(temporary)
            os.replace(temporary, target)
            _synchronise(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            source.close()

    def replace_by(self, source: Path, least_seq: int) -> None:
        """Replaces the content by that of a checked file, in one transaction. No reader may be in a view.

        The epoch grows, and the key of page tokens stays.

        Args:
            source: The file.
            least_seq: The write number is raised to it, so that numbers handed out before do not come again.
        """
        with explained(self.path), contextlib.closing(sqlite3.connect(source)) as connection:
            epoch, key = self.writer.execute("SELECT epoch + 1, token_key FROM state").fetchone()
            connection.execute(
                "UPDATE state SET seq = MAX(seq, ?), epoch = ?, token_key = ?", (least_seq, epoch, key)
            )
            connection.commit()
            connection.backup(self.writer)

    def disk_bytes(self) -> int:
        """Size of the file and its log."""
        names = (self.path.name, self.path.name + "-wal")
        return sum(size_of(self.path.with_name(name)) for name in names)

    def close(self) -> None:
        """Closes every connection; the log is folded into the file."""
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()
        self.writer.close()


class FolderLock:
    """Keeps a second process away from a data folder, until `release` or the end of this process.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "LOCK"
        self._file: IO[str] | None = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            self._file = None
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"another searcher uses the data folder {folder}: stop it, or give this one its own",
            ) from error

    def release(self) -> None:
        """Lets others in."""
        if self._file is not None:
            self._file.close()
            self._file = None


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, ready for the threads of this process to hand around."""
    uri = path.absolute().as_uri()
    if read_only:
        # Without a log beside it nobody is writing, and `immutable` needs no write access to the folder.
        uri += "?mode=ro" if size_of(path.with_name(path.name + "-wal")) else "?immutable=1"
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S
    )
    connection.execute("PRAGMA cache_size = -16384")  # KiB
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def prepare(connection: sqlite3.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    """Makes a new file, checks an old one, and brings it to the newest version. All or nothing."""
    if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    check_identity(connection, path, migrations)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 2000")
    connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def check_identity(connection: sqlite3.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    """Refuses files of other programs and of newer versions of this one."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise damaged(path, "it is not a file of this program")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{path.name} has version {version}, this program reads up to {len(migrations)}: upgrade it",
        )


def check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    """Reads the whole file and refuses it when its structure is damaged."""
    with explained(path):
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise damaged(path, str(verdict))


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
    """Turns errors of SQLite and of the file system, and damaged rows, into ours.

    They name the file and the remedy.
    """
    try:
        yield
    except DamagedRowError as error:
        raise damaged(path, str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise explain(error, path) from error


def explain(error: sqlite3.Error | OSError, path: Path) -> RegionSearchError:
    """What an error of SQLite, or its like of the file system, means to a caller."""
    if isinstance(error, OSError):
        code = _AS_SQLITE.get(error.errno or 0, sqlite3.SQLITE_ERROR)
    else:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return RegionSearchError(
            Kind.STORAGE_FULL, f"no space left for {path.name}: free some disk space; reads go on meanwhile"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{path.name} cannot be written or opened ({error}): check the folder's rights",
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


def size_of(path: Path) -> int:
    """Size in bytes; 0 for a file that does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
