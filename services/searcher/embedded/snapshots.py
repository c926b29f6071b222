"""Snapshot files: one SQLite file each, the same format as the record store's, with a checksum appended.

SQLite ignores what follows its last page, so a snapshot can also be read as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

import fsspec
import structlog

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from services.searcher.embedded.startup import check_content
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.database import Database, check_identity, connect, prepare
from services.searcher.embedded.store.faults import damaged, explained
from services.searcher.embedded.store.schema import CHECKSUMS_SINCE, MIGRATIONS
from services.searcher.embedded.store.verification import check_schema, check_store
from services.searcher.types import Collection, SnapshotFile, SnapshotInfo, Upsert

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_UNFINISHED = re.compile(r"\..+\.(part|restoring)(-wal|-shm|-journal)?")  # no snapshot's name begins so
_INCOMING = ".replica.restoring"
_MAGIC = b"RSSHA256"
_TRAILER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_BLOCK = 1 << 20
_log = structlog.get_logger(__name__)


def clear(folder: Path) -> None:
    """Deletes the files of a process that died while it wrote or restored a snapshot; they are large."""
    with explained(folder):
        for file in folder.iterdir() if folder.is_dir() else ():
            if _UNFINISHED.fullmatch(file.name):
                file.unlink()


class Archive:
    """Snapshots in another place than the folder next to the records.

    Args:
        url: Any that fsspec knows.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        with self._explained():
            self._files, self._root = fsspec.url_to_fs(url)

    def listed(self) -> list[SnapshotFile]:
        """The snapshots, in any order."""
        with self._explained():
            self._files.invalidate_cache()
            found = self._files.ls(self._root, detail=True) if self._files.exists(self._root) else []
            return [
                SnapshotFile(name, entry["size"], int(self._files.modified(entry["name"]).timestamp() * 1000))
                for entry in found
                if entry["type"] == "file" and _NAME.fullmatch(name := entry["name"].rsplit("/", 1)[-1])
            ]

    def put(self, file: Path, name: str) -> None:
        """Stores a file; should that fail half-way, the checksum of what is there does not match."""
        with self._explained():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(file), f"{self._root}/{name}")

    def get(self, name: str, target: Path) -> None:
        """Reads a file."""
        with self._explained():
            self._files.get_file(f"{self._root}/{name}", str(target))

    def delete(self, name: str) -> None:
        """Deletes a file."""
        with self._explained():
            self._files.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the many file systems raise into UNAVAILABLE."""
        try:
            yield
        except Exception as error:
            raise RegionSearchError(
                Kind.UNAVAILABLE, f"the snapshots at {self._url} cannot be reached: {error}"
            ) from error


def listed(folder: Path, archive: Archive | None) -> list[SnapshotFile]:
    """The snapshots, newest first."""
    if archive is not None:
        found = archive.listed()
    else:
        with explained(folder):
            found = [
                SnapshotFile(file.name, file.stat().st_size, file.stat().st_mtime_ns // 1_000_000)
                for file in (folder.iterdir() if folder.is_dir() else ())
                if _NAME.fullmatch(file.name) and file.is_file()
            ]
    return sorted(found, key=lambda one: (one.created_ms, one.name), reverse=True)


def delete(folder: Path, name: str, archive: Archive | None) -> None:
    """Deletes a snapshot.

    Raises:
        RegionSearchError: NOT_FOUND.
    """
    path = _path(folder, name)
    if name not in {one.name for one in listed(folder, archive)}:
        raise not_found("name", f"there is no snapshot {name!r}")
    if archive is not None:
        archive.delete(name)
        return
    with explained(path):
        path.unlink()
        _synchronise(folder)


def take(database: Database, folder: Path, name: str, archive: Archive | None = None) -> SnapshotInfo:
    """Copies the store to a new file while it is being read and written.

    Raises:
        RegionSearchError: ALREADY_EXISTS; STORAGE_FULL and the like, which leave no half file.
    """
    target = _path(folder, name)
    temporary = folder / f".{name}.part"
    with explained(target):
        folder.mkdir(exist_ok=True)
        if target.exists() or (archive is not None and name in {one.name for one in archive.listed()}):
            raise RegionSearchError(
                Kind.ALREADY_EXISTS, f"there is a snapshot {name!r} already", field="name"
            )
        try:
            _remove(temporary)
            database.copy_to(temporary)
            with contextlib.closing(connect(temporary, read_only=True)) as copy:
                seq = reads.last_seq(copy)
            _sign(temporary)
            size = temporary.stat().st_size
            if archive is not None:
                archive.put(temporary, name)
            else:
                os.replace(temporary, target)
                _synchronise(folder)
        finally:
            _remove(temporary)
        return SnapshotInfo(name, size, seq)


@contextlib.contextmanager
def collection_of(file: Path, name: str) -> Iterator[tuple[Collection, bytes | None, Iterator[Upsert]]]:
    """A collection of a prepared snapshot, its codec if that was trained, and the writes that make it again.

    Raises:
        RegionSearchError: NOT_FOUND.
    """
    with contextlib.closing(connect(file, read_only=True)) as copy:
        found = {spec.name: (rowid, spec, codec) for rowid, spec, codec in reads.collections(copy)}
        if name not in found:
            raise not_found("collection", f"the snapshot has no collection {name!r}")
        rowid, spec, codec = found[name]
        trained = spec.codes is not None and spec.codes.trained_seq > 0
        yield spec, codec if trained else None, reads.everything(copy, rowid, spec.model.dimension)


@contextlib.contextmanager
def prepared(folder: Path, name: str, archive: Archive | None = None) -> Iterator[Path]:
    """A checked copy of a snapshot in today's format, ready to replace the store; the snapshot itself stays.

    Raises:
        RegionSearchError: NOT_FOUND; DATA_LOSS for a damaged or foreign file; FAILED_PRECONDITION for a
            newer one.
    """
    source = _path(folder, name)
    if name not in {one.name for one in listed(folder, archive)}:
        raise not_found("name", f"there is no snapshot {name!r}")
    copy = folder / f".{name}.restoring"
    try:
        with explained(source):
            folder.mkdir(exist_ok=True)
            _remove(copy)
            if archive is not None:
                archive.get(name, copy)
            else:
                shutil.copyfile(source, copy)
            signed = _check_signature(copy, source)
            with contextlib.closing(connect(copy)) as connection:
                check_identity(connection, source, MIGRATIONS)
                if not signed:
                    version = connection.execute("PRAGMA user_version").fetchone()[0]
                    if version >= CHECKSUMS_SINCE:
                        raise damaged(source, "its checksum is missing")
                    _log.warning(
                        "a snapshot of before there were checksums: damage may go unnoticed", name=name
                    )
                prepare(connection, source, MIGRATIONS)
                check_store(connection, source)
                check_content(connection, source)
                connection.execute("PRAGMA journal_mode = DELETE")
        yield copy
    finally:
        _remove(copy)


def for_replica(
    database: Database, folder: Path, read: Callable[[sqlite3.Connection], T]
) -> tuple[BinaryIO, T]:
    """A snapshot to be read once: the space that it takes on disk is free again when it is closed.

    Args:
        database: The store.
        folder: For snapshots.
        read: What is wanted to be known of the snapshot.

    Raises:
        RegionSearchError: STORAGE_FULL and the like.
    """
    temporary = folder / f".{uuid.uuid4().hex}.part"
    with explained(temporary):
        folder.mkdir(exist_ok=True)
        try:
            database.copy_to(temporary)
            with contextlib.closing(connect(temporary, read_only=True)) as copy:
                known = read(copy)
            _sign(temporary)
            return temporary.open("rb"), known
        finally:
            _remove(temporary)


def incoming(folder: Path) -> BinaryIO:
    """A file for a snapshot that arrives from another searcher."""
    path = folder / _INCOMING
    folder.mkdir(exist_ok=True)
    _remove(path)
    return path.open("wb")


@contextlib.contextmanager
def received(file: IO[bytes], folder: Path) -> Iterator[Path]:
    """What `for_replica` made, as it arrived, ready to become the store. Its rows are checked when loaded.

    Raises:
        RegionSearchError: DATA_LOSS; FAILED_PRECONDITION for a newer one; STORAGE_FULL and the like.
    """
    path = folder / _INCOMING
    try:
        with explained(path):
            file.close()
            if not _check_signature(path, path):
                raise damaged(path, "its checksum is missing")
            with contextlib.closing(connect(path)) as connection:
                check_identity(connection, path, MIGRATIONS)
                check_schema(connection, path, MIGRATIONS)
        yield path
    finally:
        _remove(path)


def _sign(path: Path) -> None:
    """Appends the checksum of a file to it, and syncs it to disk."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(_MAGIC + digest)
        file.flush()
        os.fsync(file.fileno())


def _check_signature(path: Path, source: Path) -> bool:
    """Compares a file with the checksum appended to it, and removes that; returns whether there was one.

    Raises:
        RegionSearchError: DATA_LOSS, naming `source`.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END) - _TRAILER_BYTES
        if size < 0:
            return False
        file.seek(size)
        trailer = file.read()
        if not trailer.startswith(_MAGIC):
            return False
        if _digest(file, size) != trailer[len(_MAGIC) :]:
            raise damaged(source, "its checksum does not match")
        file.truncate(size)
    return True


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (block := file.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


def _remove(path: Path) -> None:
    """Deletes a database and what SQLite keeps next to it while it is open."""
    for end in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise invalid("name", "a snapshot's name is 1 to 128 of letters, digits, '.', '_' and '-'")
    return folder / name
