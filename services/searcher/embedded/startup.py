"""Start-up, and what follows a restore: the live rows of the record store become the indexes in memory.

`open_collections` reads the collections, then all live rows in order of their rowids (`store/live_rows.py`),
and hands each collection's rows to its `IndexLoader`. Where an index file covers a range of rows, the loader
puts those rows into segments of their own and replaces these by the segment that the file describes, without
training it again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.index.binary import Codec
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import IndexCache, SavedIndex
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.planning import restored
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.faults import damaged, explained
from services.searcher.embedded.store.live_rows import live_rows
from services.searcher.settings import EmbeddedSettings

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
        loaders = {collection.rowid: _loader(collection, cache, settings) for collection in found}
        for rowid, rows, added in live_rows(connection):
            if rowid in loaders:
                with _fitting(by_rowid[rowid], loaders, settings):
                    loaders[rowid].add(rows, added)
        for rowid, loader in list(loaders.items()):
            with _fitting(by_rowid[rowid], loaders, settings):
                loader.finish()
    return found


@contextlib.contextmanager
def _fitting(
    collection: OpenCollection, loaders: dict[int, IndexLoader], settings: EmbeddedSettings
) -> Iterator[None]:
    """Marks a collection for which there is not enough memory, and frees what it has taken."""
    try:
        yield
    except MemoryError:
        spec = collection.spec
        megabytes = spec.record_count * spec.model.dimension * 4 >> 20
        collection.problem = RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"collection {spec.name!r} does not fit into memory ({spec.record_count} records, about "
            f"{megabytes} MiB): give the searcher more, or delete records by id, and restart it",
            field="collection",
            metadata={"collection": spec.name},
        )
        collection.index = VectorIndex(spec.model.dimension, settings.chunk_rows)
        del loaders[collection.rowid]
        _log.error("a collection is not served", reason=collection.problem.message)


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


def _loader(collection: OpenCollection, cache: IndexCache | None, settings: EmbeddedSettings) -> IndexLoader:
    def restore(saved: SavedIndex, compaction: CompactionInput) -> IndexSegment | None:
        return restored(saved, compaction, collection, collection.spec.record_count, settings)

    return IndexLoader(collection.index, [] if cache is None else cache.find(collection.rowid), restore)


Restore = Callable[[SavedIndex, CompactionInput], IndexSegment | None]
"""Makes the segment that an index file describes from its rows; None if they do not match."""


class IndexLoader:
    """Fills one empty index, in ascending order of rowids.

    Args:
        index: The index.
        saved: Its index files, in order of their rows.
        restore: Makes a segment of an index file and its rows.
    """

    def __init__(self, index: VectorIndex, saved: Sequence[SavedIndex], restore: Restore) -> None:
        self._index = index
        self._saved = deque(saved)
        self._restore = restore
        self._first_segment: int | None = None  # of the index file whose rows are being added

    def add(self, rows: Rows, added: RowIds) -> None:
        """Adds rows whose rowids are above all earlier ones."""
        start = 0
        while start < len(rows):
            while self._saved and rows.record_rowid[start] > self._saved[0].keys[-1]:
                self._end_file()
            stop = len(rows)
            if self._saved:
                inside = rows.record_rowid[start] >= self._saved[0].keys[0]
                if inside and self._first_segment is None:
                    self._begin_file()
                stop = (
                    int(np.searchsorted(rows.record_rowid, self._saved[0].keys[-1], side="right"))
                    if inside
                    else int(np.searchsorted(rows.record_rowid, self._saved[0].keys[0]))
                )
            self._index.add(rows.part(start, stop), added[start:stop])
            start = stop

    def finish(self) -> None:
        """Ends the loading: no more rows come."""
        while self._saved:
            self._end_file()

    def _begin_file(self) -> None:
        self._index.seal()
        self._first_segment = len(self._index.state.views)

    def _end_file(self) -> None:
        saved = self._saved.popleft()
        if self._first_segment is None:
            return  # none of its rows is left
        self._index.seal()
        sources = [view.segment for view in self._index.state.views[self._first_segment :]]
        self._first_segment = None
        segment = self._restore(saved, CompactionInput(sources, 0))
        if segment is not None:
            self._index.replace(sources, [segment])
