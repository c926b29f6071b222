"""Start-up, and what follows a restore: the live rows of the record store become the indexes in memory.

`open_collections` reads the collections, then all live rows in order of their rowids (`store/live_rows.py`),
and hands each collection's rows to its `IndexLoader`. Where a stored segment covers a range of rows, the
loader keeps their columns only, because their vectors are mapped from the segment's files. Should these turn
out to be of other rows, the collection is loaded once more without them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.index.binary import Codec
from services.searcher.embedded.index.columns import Columns
from services.searcher.embedded.index.index_files import IndexCache, SavedIndex
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.planning import restored
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.faults import damaged, explained
from services.searcher.embedded.store.live_rows import live_rows
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection

_log = structlog.get_logger(__name__)


def open_collections(
    database: Database, cache: IndexCache | None, settings: EmbeddedSettings
) -> list[OpenCollection]:
    """Builds every index from the store; approximate ones come back from the index files.

    A collection that does not fit into memory is returned with its `problem`; the others are served.

    Raises:
        RegionSearchError: DATA_LOSS when the store is damaged.
    """
    with database.reading() as connection, _intact(database.path):
        found = [
            OpenCollection(
                rowid,
                spec,
                VectorIndex(spec.model.dimension, settings.chunk_rows, spec.record_count),
                None if codec is None else Codec.from_bytes(codec),
            )
            for rowid, spec, codec in reads.collections(connection)
        ]
        by_rowid = {collection.rowid: collection for collection in found}
        saved = {rowid: [] if cache is None else cache.find(rowid) for rowid in by_rowid}
        loading = set(by_rowid)
        while loading:
            loading = _load(connection, [by_rowid[rowid] for rowid in loading], saved, settings)
    return found


def _load(
    connection: sqlite3.Connection,
    collections: Sequence[OpenCollection],
    saved: Mapping[int, list[SavedIndex]],
    settings: EmbeddedSettings,
) -> set[int]:
    """Fills empty indexes; returns the rowids of those that have to be filled again, without a wrong file."""
    again: set[int] = set()
    loaders = {one.rowid: IndexLoader(one, saved[one.rowid], settings) for one in collections}

    @contextlib.contextmanager
    def trying(rowid: int) -> Iterator[None]:
        collection = loaders[rowid].collection
        try:
            yield
        except WrongRowsError as error:
            saved[rowid].remove(error.saved)
            again.add(rowid)
        except MemoryError:
            collection.problem = _too_large(collection.spec)
            _log.error("a collection is not served", reason=collection.problem.message)
        else:
            return
        collection.index = VectorIndex(collection.index.dimension, settings.chunk_rows)
        del loaders[rowid]

    for rowid, rows, added in live_rows(connection):
        if rowid in loaders:
            with trying(rowid):
                loaders[rowid].add(rows, added)
    for rowid, loader in list(loaders.items()):
        with trying(rowid):
            loader.finish()
    return again


def _too_large(spec: Collection) -> RegionSearchError:
    megabytes = spec.record_count * spec.model.dimension * 4 >> 20
    return RegionSearchError(
        Kind.FAILED_PRECONDITION,
        f"collection {spec.name!r} does not fit into memory ({spec.record_count} records, about "
        f"{megabytes} MiB): give the searcher more, or delete records by id, and restart it",
        field="collection",
        metadata={"collection": spec.name},
    )


def check_content(connection: sqlite3.Connection, path: Path) -> None:
    """Reads everything that `open_collections` would, and keeps nothing.

    Raises:
        RegionSearchError: DATA_LOSS when the file is damaged.
    """
    with explained(path), _intact(path):
        for _, _, codec in reads.collections(connection):
            if codec is not None:
                Codec.from_bytes(codec)
        for _ in live_rows(connection):
            pass


@contextlib.contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Turns a value that cannot be decoded into DATA_LOSS that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error)) from error


class WrongRowsError(Exception):
    """A stored segment is of other rows than those of the store, or cannot be used.

    Attributes:
        saved: It.
    """

    def __init__(self, saved: SavedIndex) -> None:
        super().__init__(saved.files.folder.name)
        self.saved = saved


class IndexLoader:
    """Fills one empty index, in ascending order of rowids.

    Args:
        collection: Whose index it is.
        saved: Its stored segments, in order of their rows.
        settings: Sizes and the recall target.
    """

    def __init__(
        self, collection: OpenCollection, saved: Sequence[SavedIndex], settings: EmbeddedSettings
    ) -> None:
        self.collection = collection
        self._settings = settings
        self._saved = deque(saved)
        self._columns: Columns | None = None  # of the stored segment whose rows are being added

    def add(self, rows: Rows, added: RowIds) -> None:
        """Adds rows whose rowids are above all earlier ones.

        Raises:
            WrongRowsError: A stored segment holds other rows.
        """
        start = 0
        while start < len(rows):
            while self._saved and rows.record_rowid[start] > self._saved[0].keys[-1]:
                self._end_file()
            if not self._saved or rows.record_rowid[start] < self._saved[0].keys[0]:
                stop = len(rows)
                if self._saved:
                    stop = int(np.searchsorted(rows.record_rowid, self._saved[0].keys[0]))
                self.collection.index.add(rows.part(start, stop), added[start:stop])
            else:
                keys = self._saved[0].keys
                stop = int(np.searchsorted(rows.record_rowid, keys[-1], side="right"))
                if self._columns is None:
                    self._columns = Columns(len(keys))
                if self._columns.used + stop - start > len(keys):
                    raise WrongRowsError(self._saved[0])
                self._columns.write(rows, added, start, stop)
            start = stop

    def finish(self) -> None:
        """Ends the loading: no more rows come.

        Raises:
            WrongRowsError: A stored segment holds other rows.
        """
        while self._saved:
            self._end_file()

    def _end_file(self) -> None:
        saved, present = self._saved.popleft(), self._columns
        self._columns = None
        if present is None:
            return  # none of its rows is left
        columns = present.spread(saved.keys, saved.checksums)
        segment = None if columns is None else restored(saved, columns, self.collection, self._settings)
        if segment is None:
            raise WrongRowsError(saved)
        self.collection.index.append_sealed(segment)
