"""The vector index of one collection: sealed segments and a growing tail, read without locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.searcher.embedded.index.columns import Positions
from services.searcher.embedded.index.filters import CompiledFilter, Selected
from services.searcher.embedded.index.live_queries import LiveQueries
from services.searcher.embedded.index.nearest import FlatSegment, rounding
from services.searcher.embedded.index.segments import CHUNK_ROWS, IndexSegment, Neighbors, SegmentQuery, View
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.types import Vectors

_FIRST_ROWS = 1024
_GROWTH = 3


@dataclass(frozen=True, slots=True)
class State:
    """An immutable state of the index, which a reader takes in one step."""

    views: tuple[View, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class VectorQuery:
    """A request to the index; see `SegmentQuery` for what it has in common with one.

    Attributes:
        vectors: Unit vectors to search with, shape (vectors, dimension).
        selected: Which rows count, by segment.
        count: How many of the best rows, or images, of each vector are wanted.
        by_image: Whether images are counted.
        below: The best score that is wanted.
        effort: How far approximate segments look.
    """

    vectors: Vectors
    selected: Sequence[Selected]
    count: int
    by_image: bool = False
    below: float = np.inf
    effort: float = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one segment that contain its share of the best rows."""

    segment: IndexSegment
    rows: Positions


class VectorIndex:
    """Vectors of one collection. One thread writes; any number read.

    Segments are larger the more rows there are, so that a small collection needs little memory. Compaction
    makes one of the first, small ones.

    Args:
        dimension: Length of the vectors.
        chunk_rows: Most rows of a flat segment.
        expected: Rows that will be added soon.

    Attributes:
        live: Some of the queries that it is asked.
    """

    def __init__(self, dimension: int, chunk_rows: int = CHUNK_ROWS, expected: int = 0) -> None:
        self.dimension = dimension
        self.chunk_rows = chunk_rows
        self.live = LiveQueries()
        self._expected = expected
        self._spare: deque[FlatSegment] = deque()  # memory for rows that are about to come
        self._reserved = 0
        self._state = State()

    @property
    def state(self) -> State:
        """The newest published state; it never changes under its holder."""
        return self._state

    def add(self, rows: Rows, added: RowIds) -> None:
        """Appends rows and publishes them (writing thread only)."""
        views = list(self._state.views)
        start = 0
        while start < len(rows):
            tail = views[-1].segment if views else None
            if not isinstance(tail, FlatSegment) or tail.sealed:
                tail = self._spare.popleft() if self._spare else self._segment(len(rows) - start)
                views.append(View(tail, 0))
            start = tail.append(rows, added, start)
            views[-1] = View(tail, tail.columns.used)
        self._reserved = max(0, self._reserved - len(rows))
        self._state = State(tuple(views))

    def reserve(self, count: int) -> None:
        """Allocates memory for `count` more rows, in addition to those reserved before (writing thread only).

        Raises:
            MemoryError: There is not enough; nothing is reserved then.
        """
        wanted = self._reserved + count
        views = self._state.views
        tail = views[-1].segment if views else None
        free = sum(segment.columns.capacity for segment in self._spare)
        if isinstance(tail, FlatSegment) and not tail.sealed:
            free += tail.columns.capacity - tail.columns.used
        while free < wanted:
            self._spare.append(self._segment(wanted - free))
            free += self._spare[-1].columns.capacity
        self._reserved = wanted

    def release(self) -> None:
        """Cancels reservations; the memory is kept for the next rows (writing thread only)."""
        self._reserved = 0

    def _segment(self, missing: int) -> FlatSegment:
        """An empty segment, three times as large as all before it where that is not too large."""
        held = sum(view.segment.columns.capacity for view in self._state.views)
        held += sum(segment.columns.capacity for segment in self._spare)
        rows = max(_FIRST_ROWS, _GROWTH * held, missing, self._expected - held)
        return FlatSegment(self.dimension, min(rows, self.chunk_rows))

    def remove(self, keys: RowIds, seq: int) -> None:
        """Marks records removed by write `seq` (writing thread only); older states still show them."""
        for view in self._state.views:
            if len(keys):
                view.segment.columns.remove(keys, seq)

    def seal(self) -> None:
        """Ends the growing segment; the next row begins a new one (writing thread only)."""
        if self._state.views and isinstance(tail := self._state.views[-1].segment, FlatSegment):
            tail.sealed = True

    def append_sealed(self, segment: IndexSegment) -> None:
        """Publishes a sealed segment behind the others, whose last one it ends (writing thread only)."""
        self.seal()
        self._state = State((*self._state.views, View(segment, segment.columns.used)))

    def replace(self, old: Sequence[IndexSegment], new: Sequence[IndexSegment]) -> None:
        """Publishes new segments in the place of neighbouring sealed ones (writing thread only)."""
        gone = {id(segment) for segment in old}
        views: list[View] = []
        for view in self._state.views:
            if view.segment is old[0]:
                views += [View(segment, segment.columns.used) for segment in new]
            if id(view.segment) not in gone:
                views.append(view)
        self._state = State(tuple(views))

    def matching(self, conditions: CompiledFilter) -> RowIds:
        """Rowids of all rows that pass."""
        found = [np.empty(0, np.int64)]
        for one in conditions.select(self._state.views):
            keys = one.segment.columns.record_rowid[: one.rows]
            found.append(keys if one.mask is None else keys[one.mask])
        return np.concatenate(found)

    def fetch(self, requests: Sequence[VectorQuery]) -> list[list[Part]]:
        """Answers many requests in one pass over the vectors."""
        asked: dict[int, tuple[IndexSegment, list[tuple[int, SegmentQuery]]]] = {}
        for number, request in enumerate(requests):
            for one in request.selected:
                segment_query = SegmentQuery(
                    request.vectors, one.rows, one.mask, one.matching, request.count, request.by_image,
                    request.below, request.effort,
                )  # fmt: skip
                asked.setdefault(id(one.segment), (one.segment, []))[1].append((number, segment_query))
        found: list[list[tuple[IndexSegment, list[Neighbors]]]] = [[] for _ in requests]
        for segment, segment_queries in asked.values():
            answers = segment.nearest([segment_query for _, segment_query in segment_queries])
            for (number, _), answer in zip(segment_queries, answers, strict=True):
                found[number].append((segment, answer))
        return [
            _worth_scoring(request, parts, 2 * rounding(self.dimension))
            for request, parts in zip(requests, found, strict=True)
        ]


def _worth_scoring(
    request: VectorQuery, found: Sequence[tuple[IndexSegment, list[Neighbors]]], margin: float
) -> list[Part]:
    """The rows of all segments that can be among the best of them together."""
    units = [
        [
            segment.columns.image_rowid[rows] if request.by_image else (number << 40) + rows
            for rows, _ in answer
        ]
        for number, (segment, answer) in enumerate(found)
    ]
    # What may score just `below`, with any query, comes in addition to what is counted.
    added: RowIds = np.empty(0, np.int64)
    if request.below < np.inf and found:
        near = [
            unit[scores >= request.below - margin]
            for owned, (_, answer) in zip(units, found, strict=True)
            for unit, (_, scores) in zip(owned, answer, strict=True)
        ]
        added = np.unique(np.concatenate(near))
    kept: list[list[Positions]] = [[] for _ in found]
    for query in range(len(request.vectors)):
        floor = _floor(
            [owned[query] for owned in units],
            [answer[query][1] for _, answer in found],
            added,
            request.count,
            by_image=request.by_image,
        )
        for number, (_, answer) in enumerate(found):
            rows, scores = answer[query]
            keep = scores >= floor - margin
            if len(added):
                keep |= np.isin(units[number][query], added)
            kept[number].append(rows[keep])
    parts = []
    for (segment, _), chosen in zip(found, kept, strict=True):
        rows = chosen[0] if len(chosen) == 1 else np.unique(np.concatenate(chosen))
        if len(rows):
            parts.append(Part(segment, rows))
    return parts


def _floor(
    units: Sequence[RowIds], scores: Sequence[Vectors], added: RowIds, count: int, *, by_image: bool
) -> float:
    """The score of the `count`-th best row or image, of those that are not `added`."""
    all_units = np.concatenate([np.empty(0, np.int64), *units])
    all_scores = np.concatenate([np.empty(0, np.float32), *scores])
    if len(added):
        counted = ~np.isin(all_units, added)
        all_units, all_scores = all_units[counted], all_scores[counted]
    if by_image and len(all_scores):
        _, places = np.unique(all_units, return_inverse=True)
        tops = np.full(int(places.max()) + 1, -np.inf, np.float32)
        np.maximum.at(tops, places, all_scores)
        all_scores = tops
    cut = len(all_scores) - count
    return float(np.partition(all_scores, cut)[cut]) if cut > 0 else -np.inf
