"""The SQLite file: opening, migrating, copying.

What an answered write survives: the file is in WAL mode with ``synchronous=FULL``, so a commit has been
handed to the disk with fdatasync before it is answered. It survives the death of the process, of the
operating system and of the power, as far as the disk itself honours synchronisation. It does not
survive the loss of the disk: take snapshots for that.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.store.faults import damaged, explained
from services.searcher.embedded.store.reads import last_seq
from services.searcher.embedded.store.schema import APPLICATION_ID, MIGRATIONS, PAGE_SIZE
from services.searcher.embedded.store.verification import check_schema

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
                f"continue without those writes, delete {self._path.name}",
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


FILE_NAME = "records.sqlite"
UNFINISHED = "."
"""The name of a collection that is being restored begins so; no other does."""
_BUSY_TIMEOUT_S = 10.0
_MISSED_WRITES = 1 << 20  # that a replica may lack when it takes over


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
        self._log_path = path.with_name(path.name + "-wal")
        self.read_only = read_only
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self.last_write = LastWrite(path, read_only=read_only)
        with explained(path), _unrecovered_log_explained(path, read_only=read_only):
            self.writer = connect(path, read_only=read_only)
            try:
                if read_only:
                    check_identity(self.writer, path, MIGRATIONS)
                    check_schema(self.writer, path, MIGRATIONS)
                else:
                    prepare(self.writer, path, MIGRATIONS)
                self.last_write.check(last_seq(self.writer))
            except BaseException:
                self.writer.close()  # later it would take a log with it that was put back meanwhile
                raise

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
        """A consistent view for several statements; errors are translated."""
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
        """Writes a consistent copy while reading and writing continue; not synchronised to disk.

        Raises:
            RegionSearchError: STORAGE_FULL and the like.
        """
        with (
            contextlib.closing(connect(self.path, read_only=self.read_only)) as source,
            explained(target),
            contextlib.closing(connect(target)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")

    def replace_by(self, source: Path, least_seq: int) -> None:
        """Replaces the content by that of a checked file, in one transaction. No reader may be in a view.

        The epoch grows, and the key of page tokens stays.

        Args:
            source: The file.
            least_seq: The write number is raised to it, so that numbers handed out before do not come again.
        """
        with explained(self.path), contextlib.closing(connect(source)) as connection:
            epoch, token_key = self.writer.execute("SELECT epoch + 1, token_key FROM state").fetchone()
            connection.execute(
                "UPDATE state SET seq = MAX(seq, ?), epoch = ?, token_key = ?, replica = 0",
                (least_seq, epoch, token_key),
            )
            connection.backup(self.writer)

    def become(self, source: Path) -> None:
        """Replaces the content, as `replace_by` does, by a copy of the store that this one follows."""
        with explained(self.path), contextlib.closing(connect(source)) as connection:
            connection.execute("UPDATE state SET replica = 1")
            connection.backup(self.writer)

    def take_role(self, *, replica: bool) -> None:
        """Opens the store for writes, or as a replica of another one.

        What was a replica and now takes writes is another store from here on: its epoch grows, and its writes
        are numbered far behind those that it may have missed.

        Raises:
            RegionSearchError: FAILED_PRECONDITION for a replica in a folder with data of its own.
        """
        with explained(self.path):
            was_replica, used = self.writer.execute(
                "SELECT replica, EXISTS (SELECT 1 FROM collection) FROM state"
            ).fetchone()
            if replica and used and not was_replica:
                raise RegionSearchError(
                    Kind.FAILED_PRECONDITION,
                    f"{self.path.parent} holds data of its own, which a read replica would replace: give it "
                    "an empty folder, or unset follow",
                )
            if was_replica and not replica:
                self.writer.execute(
                    "UPDATE state SET replica = 0, epoch = epoch + 1, seq = seq + ?", (_MISSED_WRITES,)
                )
                _log.warning("what was a read replica takes writes from now on", file=self.path.name)

    def drop_unfinished(self) -> None:
        """Drops collections that were being restored when the process ended."""
        with explained(self.path):
            unfinished = "dropped = 0 AND name GLOB ? || '*'"
            query = f"SELECT 1 FROM collection WHERE {unfinished}"  # noqa: S608
            if self.writer.execute(query, (UNFINISHED,)).fetchone() is not None:
                self.writer.execute("BEGIN")
                self.writer.execute("UPDATE state SET seq = seq + 1")
                seq = "(SELECT seq FROM state)"
                self.writer.execute(
                    f"UPDATE collection SET dropped = {seq}, changed = {seq} WHERE {unfinished}",  # noqa: S608
                    (UNFINISHED,),
                )
                self.writer.execute("COMMIT")

    def disk_bytes(self) -> int:
        """Size of the file and its log."""
        return self.file_bytes() + self.log_bytes()

    def keep_log_below(self, size: int) -> None:
        """Truncates the log's file to this many bytes when it starts over."""
        self.writer.execute(f"PRAGMA journal_size_limit = {size}")

    def file_bytes(self) -> int:
        """Size of the file."""
        return size_of(self.path)

    def log_bytes(self) -> int:
        """Size of the log."""
        return size_of(self._log_path)

    def close(self) -> None:
        """Closes every connection; the last one checkpoints the log."""
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()
        self.writer.close()
        self.last_write.close()


@contextlib.contextmanager
def _unrecovered_log_explained(path: Path, *, read_only: bool) -> Iterator[None]:
    """Names the remedy where reading needs a recovery that a read-only folder forbids.

    A searcher that was killed leaves its log behind. SQLite reads it through an index of it, the `-shm` file,
    which it has to create if it is missing.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        log, index = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
        if not read_only or not size_of(log) or index.exists():
            raise
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"{log.name} holds writes of a searcher that was killed, and {index.name}, needed to "
            f"read them, cannot be created in a read-only folder ({error}): start a searcher that may "
            "write on the folder or on a copy of it, stop it again, and then open that read-only",
        ) from error


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, ready for the threads of this process to hand around."""
    uri = path.absolute().as_uri()
    if read_only:
        # Without a log there is no writer, and `immutable` needs no write access to the folder.
        uri += "?mode=ro" if size_of(path.with_name(path.name + "-wal")) else "?immutable=1"
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA cache_size = -16384")  # KiB
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def prepare(connection: sqlite3.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    """Creates a file, or checks it and migrates it to the newest version. All or nothing."""
    if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    check_identity(connection, path, migrations)
    check_schema(connection, path, migrations)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # see checkpoints.py
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


def size_of(path: Path) -> int:
    """Size in bytes; 0 for a file that does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
