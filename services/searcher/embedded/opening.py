"""All collections of a store brought into memory, at start and after a restore."""

from __future__ import annotations

from services.searcher.embedded import reads
from services.searcher.embedded.cache import IndexCache, SavedIndex
from services.searcher.embedded.codes import Codec
from services.searcher.embedded.database import Database, damaged
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
    with database.reading() as connection:
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
        try:
            for number, rows, added in live_rows(connection):
                fillers[number].add(rows, added)
        except ValueError as error:
            raise damaged(database.path, str(error)) from error
        for filler in fillers.values():
            filler.finish()
    return found


def _filler(opened: OpenCollection, cache: IndexCache | None, settings: EmbeddedSettings) -> Filler:
    def restore(saved: SavedIndex, rewrite: Rewrite) -> Segment | None:
        return restored(saved, rewrite, opened, opened.spec.record_count, settings)

    return Filler(opened.index, [] if cache is None else cache.find(opened.number), restore)
