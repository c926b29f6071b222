"""The candidates of a ranking, from one collection's index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import numpy as np

from services.searcher.bounded_executor import CancellationToken
from services.searcher.candidates import Candidates, Numbers, cosines
from services.searcher.embedded.faiss_compat import product
from services.searcher.embedded.index.columns import Mask, Positions
from services.searcher.embedded.index.filters import Selected
from services.searcher.embedded.index.nearest import rounding
from services.searcher.embedded.index.search_thread import SearchThreads
from services.searcher.embedded.index.segments import EXACT, IndexSegment
from services.searcher.embedded.index.vector_index import Part, VectorQuery
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.queries.filter_compiler import select_rows
from services.searcher.embedded.queries.tie_order import MANY, IdOrder
from services.searcher.embedded.store import lookups, reads
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.reads import HitRow
from services.searcher.queries import Query
from services.searcher.ranking import first_count
from services.searcher.types import Level, Vectors

_BLOCK = 4096
_MORE_ROWS = 32  # than the hits of a page whose ids its order needs, if there are no ties


class SelectedRows:
    """The rows of one state of a collection that pass a query's filter.

    Args:
        database: The record store.
        collection: The collection.
        query: The query.
        seq: The write whose state is searched.

    Attributes:
        seq: That write.
        rows: Rows that were read for their ids, by key; without masks.
    """

    def __init__(self, database: Database, collection: OpenCollection, query: Query, seq: int) -> None:
        self._database = database
        self._query = query
        self.seq = seq
        self.rows: dict[int, HitRow] = {}
        self._against = np.concatenate([query.vectors, query.negatives])
        self._selected = select_rows(database, collection, query.filter, query.level, seq)

    def vectors(self, keys: Sequence[int]) -> Vectors:
        """See `CandidateSource`."""
        wanted = np.asarray(keys, np.int64)
        order = np.argsort(wanted)
        found = np.zeros((len(wanted), self._against.shape[1]), np.float32)
        for one in self._selected:
            columns = one.segment.columns
            rows = columns.rows_of_records(wanted[order], one.rows)
            found[order[np.searchsorted(wanted[order], columns.record_rowid[rows])]] = one.segment.gather(
                rows
            )
        return found

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        """See `CandidateSource`."""
        wanted = list(keys)
        with self._database.reading() as connection:
            if len(wanted) > self._query.limit + _MORE_ROWS or self._query.include_masks:
                return lookups.public_ids(connection, wanted)
            # Most of them are hits: their rows are read once, with all that is shown of them.
            missing = [key for key in wanted if key not in self.rows]
            self.rows.update((row.key, row) for row in reads.hit_rows(connection, missing, masks=False))
        return {key: self.rows[key].public_ids for key in wanted}

    def _candidates(
        self, parts: Sequence[Part], scores: Sequence[Vectors], *, complete: bool, by_image: bool = False
    ) -> Candidates:
        columns = [(part.segment.columns, part.rows) for part in parts]
        return Candidates(
            np.concatenate([np.empty(0, np.int64), *(one.record_rowid[rows] for one, rows in columns)]),
            np.concatenate([np.empty(0, np.int64), *(one.image_rowid[rows] for one, rows in columns)]),
            np.concatenate([np.empty(0, np.uint8), *(one.level[rows] for one, rows in columns)]),
            np.concatenate([np.empty((0, len(self._against)), np.float32), *scores]),
            complete,
            by_image,
        )


class IndexSource(SelectedRows):
    """The candidate source of one query on one state of a collection.

    A pass over the vectors finds rows that can be among the best; here they are scored exactly and ordered.

    Args:
        database: The record store.
        search: The search threads.
        collection: The collection.
        query: The query.
        seq: The write whose state is searched.
        cancellation: Cancels the search.

    Attributes:
        ahead: See `CandidateSource`.
        approximate: Whether better records may exist than are found.
        count: How many rows the ranking wants first.
        first: Those; to be set before the ranking.
    """

    def __init__(
        self,
        database: Database,
        search: SearchThreads,
        collection: OpenCollection,
        query: Query,
        seq: int,
        cancellation: CancellationToken,
    ) -> None:
        super().__init__(database, collection, query, seq)
        self._cancellation = cancellation
        self._search = search
        self._opened = collection
        self._order = IdOrder(database, collection.rowid)
        # Negatives are compared among the nearest records; a cutoff needs the best one.
        negated = len(query.negatives) > 0
        self._by_image = query.group_by_image and not negated
        self._resumes = query.after is not None and not negated and query.relative_cutoff is None
        self.ahead = len(query.shown) if self._resumes else query.skipped + len(query.shown)
        self._total = sum(one.matching for one in self._selected)
        self._effort = query.effort if query.after is None else EXACT
        self.approximate = self._effort < EXACT and any(one.segment.approximate for one in self._selected)
        self.count = first_count(query, self.ahead)
        self.first: Future[list[Part]]

    def best(self, count: int) -> Candidates:
        """See `CandidateSource`."""
        first = count == self.count
        if first:
            found = self.first
        else:
            [found] = self._search.submit(self._opened.index, [self.request(count)])
        parts = found.result()
        scores = [exact_scores(part.segment, part.rows, self._against) for part in parts]
        if first and parts and self._query.after is None:
            queries = self._query.vectors
            tops = np.max([these[:, : len(queries)].max(axis=0) for these in scores], axis=0)
            self._opened.index.live.note(queries, tops)
        parts, scores = self._behind(parts, scores)
        units = _units(parts, by_image=self._by_image)
        parts, scores = self._without_excess_ties(parts, scores, count)
        return self._candidates(
            parts, scores, complete=units < count or self._total <= count, by_image=self._by_image
        )

    def of_images(self, images: Numbers) -> Candidates:
        """See `CandidateSource`."""
        parts = []
        for one in self._selected:
            rows = one.segment.columns.rows_of_images(images, one.rows)
            rows = rows if one.mask is None else rows[one.mask[rows]]
            if not len(self._query.negatives):
                rows = _best_of_levels(one, rows, self._query.vectors)
            if len(rows):
                parts.append(Part(one.segment, rows))
        scores = [exact_scores(part.segment, part.rows, self._against) for part in parts]
        return self._candidates(parts, scores, complete=True)

    def request(self, count: int) -> tuple[VectorQuery, CancellationToken]:
        """What the index is asked for the best `count`, and what cancels it."""
        query = self._query
        below = np.inf
        if self._resumes and query.after is not None:
            # A whole image may stand behind `after` for a region that is better than it by the margin.
            margin = query.whole_image_margin if query.group_by_image and query.level is None else 0.0
            below = query.after.score + margin
        request = VectorQuery(query.vectors, self._selected, count, self._by_image, below, self._effort)
        return request, self._cancellation

    def _behind(self, parts: Sequence[Part], scores: Sequence[Vectors]) -> tuple[list[Part], list[Vectors]]:
        """Without what earlier pages have shown, as far as single rows tell."""
        query, after = self._query, self._query.after
        if not self._resumes or after is None or (query.group_by_image and query.level is None):
            return list(parts), list(scores)
        shown: list[Mask] = []
        for part, these in zip(parts, scores, strict=True):
            final = these.max(axis=1)
            passed = final > np.float32(after.score)
            ties = np.flatnonzero(final == np.float32(after.score))
            if len(ties):
                passed[ties] = ~self._order.behind(part.segment.columns, part.rows[ties], after)
            shown.append(passed)
        if self._by_image and parts:
            images = [part.segment.columns.image_rowid[part.rows] for part in parts]
            gone = np.unique(np.concatenate([i[s] for i, s in zip(images, shown, strict=True)]))
            shown = [np.isin(these, gone) for these in images]
        kept = [~these for these in shown]
        return _taken(parts, scores, kept)

    def _without_excess_ties(
        self, parts: Sequence[Part], scores: Sequence[Vectors], count: int
    ) -> tuple[list[Part], list[Vectors]]:
        """Where very many rows tie with the last of the best `count`, only the first ones by their ids."""
        if sum(len(part.rows) for part in parts) <= MANY + count:
            return list(parts), list(scores)
        final = [these[:, : len(self._query.vectors)].max(axis=1) for these in scores]
        tops = np.concatenate(final)
        if self._by_image:
            images = np.concatenate([part.segment.columns.image_rowid[part.rows] for part in parts])
            _, place = np.unique(images, return_inverse=True)
            best = np.full(int(place.max()) + 1, -np.inf, np.float32)
            np.maximum.at(best, place, tops)
            tops = best
        if len(tops) <= count:
            return list(parts), list(scores)
        floor = np.partition(tops, len(tops) - count)[len(tops) - count]
        kept: list[Mask] = []
        for part, these in zip(parts, final, strict=True):
            keep = these > floor
            ties = np.flatnonzero(these == floor)
            if len(ties) > MANY:
                first = self._order.first(
                    part.segment.columns, part.rows[ties], count, by_image=self._by_image
                )
                ties = ties[np.isin(part.rows[ties], first)]
            keep[ties] = True
            kept.append(keep)
        return _taken(parts, scores, kept)


def exact_scores(segment: IndexSegment, rows: Positions, queries: Vectors) -> Vectors:
    """Cosines of rows (see `cosines`), shape (rows, queries). Equal vectors are scored once."""
    if len(rows) > _BLOCK:
        _, first, inverse = np.unique(segment.columns.content[rows], return_index=True, return_inverse=True)
        if 2 * len(first) < len(rows):
            different: Vectors = exact_scores(segment, rows[np.sort(first)], queries)
            places = np.empty(len(first), np.intp)
            places[np.argsort(first)] = np.arange(len(first))
            return different[places[inverse]]
    scores = np.empty((len(rows), len(queries)), np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores[block] = cosines(segment.gather(rows[block]), queries)
    return scores


def _best_of_levels(one: Selected, rows: Positions, queries: Vectors) -> Positions:
    """The rows that can be the best of their image and level."""
    if len(rows) <= _BLOCK:
        return rows
    columns = one.segment.columns
    scores = np.concatenate(
        [
            product(queries, one.segment.gather(rows[start : start + _BLOCK])).max(axis=0)
            for start in range(0, len(rows), _BLOCK)
        ]
    )
    scores *= columns.scale[rows]
    kinds = 2 * columns.image_rowid[rows] + (columns.level[rows] == Level.REGION)
    _, place = np.unique(kinds, return_inverse=True)
    tops = np.full(int(place.max()) + 1, -np.inf, np.float32)
    np.maximum.at(tops, place, scores)
    return rows[scores >= tops[place] - 2 * rounding(queries.shape[1])]


def _taken(
    parts: Sequence[Part], scores: Sequence[Vectors], kept: Sequence[Mask]
) -> tuple[list[Part], list[Vectors]]:
    taken = [
        (Part(part.segment, part.rows[keep]), these[keep])
        for part, these, keep in zip(parts, scores, kept, strict=True)
        if keep.any()
    ]
    return [part for part, _ in taken], [these for _, these in taken]


def _units(parts: Sequence[Part], *, by_image: bool) -> int:
    """The number of rows, or of images."""
    if not by_image or not parts:
        return sum(len(part.rows) for part in parts)
    return len(np.unique(np.concatenate([part.segment.columns.image_rowid[part.rows] for part in parts])))
