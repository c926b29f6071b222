"""Pages of results: ranked hits, and records by id."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.diversity import diverse, rank_diverse, widened
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.queries.candidate_source import IndexSource
from services.searcher.embedded.queries.code_source import CodeSource
from services.searcher.embedded.store import lookups, reads
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.reads import HitRow
from services.searcher.engine import SearchCall
from services.searcher.queries import BEGINNING, Hit, Page, Query
from services.searcher.ranking import Ranked
from services.searcher.response_budget import ResponseBudget
from services.searcher.types import Record, Stored, StoredImage

Described = dict[int, tuple[Record, StoredImage] | None]
"""Record and image by key; None where they are damaged."""

Source = IndexSource | CodeSource


def sources(
    database: Database, search: SearchThreads, collection: OpenCollection, call: SearchCall, present: int
) -> list[Source]:
    """Of each query, over the state that it is pinned to, or after write `present`; both are held."""
    made: list[Source] = []
    for query in call.queries:
        seq = present if query.seq is None else query.seq
        if query.codes_only:
            made.append(CodeSource(database, collection, widened(query), seq))
        else:
            made.append(IndexSource(database, search, collection, widened(query), seq, call.cancellation))
    return made


def ask(search: SearchThreads, collection: OpenCollection, calls: Sequence[Sequence[Source]]) -> None:
    """Asks for what the rankings of some calls want first; all of it is found in one pass.

    Args:
        search: The search threads.
        collection: The collection.
        calls: The sources of each call.
    """
    asking = [source for found in calls for source in found if isinstance(source, IndexSource)]
    asked = search.submit(collection.index, [source.request(source.count) for source in asking])
    for source, first in zip(asking, asked, strict=True):
        source.first = first


def pages(database: Database, call: SearchCall, found: Sequence[Source], generation: str) -> list[Page]:
    """A page for each query from its source; `generation` is the collection's."""
    alone = len(found) == 1
    return [
        replace(_page(database, source, query, call.budget, may_end_early=alone), generation=generation)
        for source, query in zip(found, call.queries, strict=True)
    ]


def _page(
    database: Database,
    source: Source,
    query: Query,
    budget: ResponseBudget,
    *,
    may_end_early: bool,
) -> Page:
    """Ranked hits. A page ends early, before the first hit that `budget` does not fit."""
    ranked, more = rank_diverse(query, source)
    wanted = [r.key for found in ranked for r in (found, found.best_region) if r is not None]
    described: Described = {}
    refusal: RegionSearchError | None = None
    try:
        with contextlib.closing(_rows(database, source, wanted, masks=query.include_masks)) as rows:
            for row in rows:
                description = row.described()
                if description is not None:
                    description = description[0], budget.shown(description[1])
                    budget.take_record(description[0])
                    budget.take_image(description[1])
                described[row.key] = description
    except RegionSearchError as error:
        refusal = error
    if refusal is None:
        described = {**dict.fromkeys(wanted), **described}  # without its image a record is damaged too
    fitting = list(itertools.takewhile(lambda found: _is_in(found, described), ranked))
    if refusal is not None and (refusal.kind is not Kind.TOO_LARGE or not fitting or not may_end_early):
        raise refusal
    numbered = enumerate(fitting, start=query.skipped + 1)
    hits = [hit for number, found in numbered if (hit := _hit(number, found, described)) is not None]
    after, shown = None, query.shown
    if diverse(query):
        after, shown = BEGINNING, (*query.shown, *(found.key for found in fitting))
    elif query.after is None and source.approximate:
        # Later pages search all rows, and may find better records than the first page has shown.
        after, shown = BEGINNING, tuple(found.key for found in fitting)
    more = more or len(fitting) < len(ranked)
    return Page(tuple(hits), source.seq, more, after=after, shown=shown if more else ())


def _rows(
    database: Database, source: Source, keys: Sequence[int], *, masks: bool
) -> Generator[HitRow, None, None]:
    """The rows of some keys, in that order; read one by one, unless the source has them already."""
    if all(key in source.rows for key in keys):
        yield from (source.rows[key] for key in keys)
        return
    with database.reading() as connection:
        yield from reads.hit_rows(connection, keys, masks=masks)


def records(
    database: Database,
    collection: OpenCollection,
    record_ids: Sequence[str],
    image_ids: Sequence[str],
    seq: int,
    budget: ResponseBudget,
    *,
    masks: bool,
    vectors: bool,
    images_only: bool,
) -> Stored:
    """Records by id, and all records of images, or only these images, as they are now.

    `seq` is the last write.
    """
    dimension = collection.spec.model.dimension
    with database.reading() as connection:
        asked = [
            image.image_rowid
            for image in lookups.live_images(connection, collection.rowid, image_ids).values()
        ]
        if images_only:
            return Stored((), tuple(reads.images(connection, sorted(asked), budget)), None, seq)
        keys = np.union1d(
            lookups.rowids_of_records(connection, collection.rowid, record_ids),
            lookups.record_rowids_of_images(connection, asked),
        )
        places = reads.in_reading_order(connection, keys.tolist())
        ordered = [key for key, _ in places]
        if vectors:
            budget.take(len(ordered) * dimension * np.dtype(np.float32).itemsize)
        described = reads.records(connection, ordered, budget, masks=masks)
        images = reads.images(connection, sorted({*asked, *(image for _, image in places)}), budget)
        found = reads.vectors(connection, ordered, dimension) if vectors else None
    return Stored(tuple(described[key] for key in ordered), tuple(images), found, seq)


def _is_in(found: Ranked, described: Described) -> bool:
    return found.key in described and (found.best_region is None or found.best_region.key in described)


def _hit(number: int, found: Ranked, described: Described) -> Hit | None:
    """A hit with its descriptions; None where they are damaged."""
    description = described[found.key]
    if description is None:
        return None
    region = None if found.best_region is None else _hit(number, found.best_region, described)
    place = found.position
    return Hit(number, place.score, found.relevancy, found.query_index, *description, region, found.folded)
