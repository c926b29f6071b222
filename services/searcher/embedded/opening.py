"""All collections of a store brought into memory, at start and after a restore."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from services.searcher.embedded import reads
from services.searcher.embedded.cache import IndexCache, SavedIndex
from services.searcher.embedded.codes import Codec
from services.searcher.embedded.database import Database, damaged, explained
from services.searcher.embedded.filling import Filler
from services.searcher.embedded.index import VectorIndex
from services.searcher.embedded.loading import live_rows
from services.searcher.embedded.opened import OpenCollection
from services.searcher.embedded.planning import restored
from services.searcher.embedded.rewriting import Rewrite
from services.searcher.embedded.segments import Segment
from services.searcher.settings import EmbeddedSettings


def open_collections(
    database: Database, cache: IndexCache | None, settings: EmbeddedSettings
) -> list[OpenCollection]:
    """Builds every index from the store; faster ones come back from the cache.

    Raises:
        RegionSearchError: DATA_LOSS when the store is damaged.
    """
    with database.reading() as connection, _intact(database.path):
        found = [
            OpenCollection(
                number,
                spec,
                VectorIndex(spec.model.dimension, settings.chunk_rows),
                None if codec is None else Codec.from_bytes(codec),
            )
            for number, spec, codec in reads.collections(connection)
        ]
        fillers = {opened.number: _filler(opened, cache, settings) for opened in found}
        for number, rows, added in live_rows(connection):
            fillers[number].add(rows, added)
        for filler in fillers.values():
            filler.finish()
    return found


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
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _filler(opened: OpenCollection, cache: IndexCache | None, settings: EmbeddedSettings) -> Filler:
    def restore(saved: SavedIndex, rewrite: Rewrite) -> Segment | None:
        return restored(saved, rewrite, opened, opened.spec.record_count, settings)

    return Filler(opened.index, [] if cache is None else cache.find(opened.number), restore)
