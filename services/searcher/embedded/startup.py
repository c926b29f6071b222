"""All collections of a store brought into memory, at start and after a restore."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.index.binary import Codec
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import IndexCache, SavedIndex
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.index_loader import IndexLoader
from services.searcher.embedded.open_collection import OpenCollection
from services.searcher.embedded.planning import restored
from services.searcher.embedded.row_loader import live_rows
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.faults import damaged, explained
from services.searcher.settings import EmbeddedSettings

_log = structlog.get_logger(__name__)


def open_collections(
    database: Database, cache: IndexCache | None, settings: EmbeddedSettings
) -> list[OpenCollection]:
    """Builds every index from the store; faster ones come back from the cache.

    A collection that does not fit into memory is opened with its `problem`; the others are served.

    Raises:
        RegionSearchError: DATA_LOSS when the store is damaged.
    """
    with database.reading() as connection, _intact(database.path):
        found = [
            OpenCollection(
                number,
                spec,
                VectorIndex(spec.model.dimension, settings.chunk_rows, spec.record_count),
                None if codec is None else Codec.from_bytes(codec),
            )
            for number, spec, codec in reads.collections(connection)
        ]
        by_number = {opened.number: opened for opened in found}
        fillers = {opened.number: _filler(opened, cache, settings) for opened in found}
        for number, rows, added in live_rows(connection):
            if number in fillers:
                with _fitting(by_number[number], fillers, settings):
                    fillers[number].add(rows, added)
        for number, filler in list(fillers.items()):
            with _fitting(by_number[number], fillers, settings):
                filler.finish()
    return found


@contextlib.contextmanager
def _fitting(
    opened: OpenCollection, fillers: dict[int, IndexLoader], settings: EmbeddedSettings
) -> Iterator[None]:
    """Gives a collection up for which there is no memory, and its memory back."""
    try:
        yield
    except MemoryError:
        spec = opened.spec
        megabytes = spec.record_count * spec.model.dimension * 4 >> 20
        opened.problem = RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"collection {spec.name!r} does not fit into memory ({spec.record_count} records, about "
            f"{megabytes} MiB): give the searcher more, or delete records by id, and restart it",
            field="collection",
            metadata={"collection": spec.name},
        )
        opened.index = VectorIndex(spec.model.dimension, settings.chunk_rows)
        del fillers[opened.number]
        _log.error("a collection is not served", reason=opened.problem.message)


def check_content(connection: sqlite3.Connection, path: Path) -> None:
    """Reads all that `open_collections` would, keeping nothing.

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
    """Says of what cannot be read that the file is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error)) from error


def _filler(opened: OpenCollection, cache: IndexCache | None, settings: EmbeddedSettings) -> IndexLoader:
    def restore(saved: SavedIndex, rewrite: CompactionInput) -> IndexSegment | None:
        return restored(saved, rewrite, opened, opened.spec.record_count, settings)

    return IndexLoader(opened.index, [] if cache is None else cache.find(opened.number), restore)
