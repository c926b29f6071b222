"""The vector index of one collection: sealed segments and a growing tail, read without locks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.conditions import Conditions
from services.searcher.embedded.flat import FlatSegment
from services.searcher.embedded.rows import Keys, Rows
from services.searcher.embedded.segments import (
    CHUNK_ROWS,
    Found,
    Mask,
    Positions,
    Probe,
    Segment,
    View,
    rounding,
)
from services.searcher.ranking import Candidates
from services.searcher.types import Vectors

_BLOCK = 4096
_RECENT = 256


@dataclass(frozen=True, slots=True)
class State:
    """What a reader takes in one step. `images` is one more than the highest image ordinal."""

    views: tuple[View, ...] = ()
    images: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """A request to the index.

    Attributes:
        vectors: Unit vectors to search with, shape (vectors, dimension).
        conditions: Which rows count.
        count: How many of the best rows of each vector are wanted; None asks for all rows.
        negatives: Further vectors to score the found rows with.
    """

    vectors: Vectors
    conditions: Conditions
    count: int | None
    negatives: Vectors


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one segment for one request: the nearest of each query, or simply all that match."""

    segment: Segment
    found: Sequence[Found] = ()
    whole: Positions | None = None

    def rows(self, floors: Sequence[float]) -> Positions:
        """Rows that reach the floor of any query."""
        if self.whole is not None:
            return self.whole
        kept = [rows[scores >= floor] for (rows, scores), floor in zip(self.found, floors, strict=True)]
        return kept[0] if len(kept) == 1 else np.unique(np.concatenate(kept))


class VectorIndex:
    """Vectors of one collection. One thread writes; any number read.

    Args:
        dimension: Length of the vectors.
        chunk_rows: Rows of a flat segment.
    """

    def __init__(self, dimension: int, chunk_rows: int = CHUNK_ROWS) -> None:
        self.dimension = dimension
        self.chunk_rows = chunk_rows
        self._recent: deque[Vectors] = deque(maxlen=_RECENT)
        self._state = State()

    @property
    def state(self) -> State:
        """The newest published state; it never changes under its holder."""
        return self._state

    def add(self, rows: Rows, added: Keys) -> None:
        """Appends rows and publishes them (writing thread only)."""
        views = list(self._state.views)
        start = 0
        while start < len(rows):
            tail = views[-1].segment if views else None
            if not isinstance(tail, FlatSegment) or tail.sealed:
                tail = FlatSegment(self.dimension, self.chunk_rows)
                views.append(View(tail, 0))
            start = tail.append(rows, added, start)
            views[-1] = View(tail, tail.columns.used)
        images = max(self._state.images, int(rows.image.max()) + 1) if len(rows) else self._state.images
        self._state = State(tuple(views), images)

    def remove(self, keys: Keys, seq: int) -> None:
        """Marks records removed by write `seq` (writing thread only); older states still show them."""
        for view in self._state.views:
            if len(keys):
                view.segment.columns.remove(keys, seq)

    def seal(self) -> None:
        """Ends the growing segment; the next row begins a new one (writing thread only)."""
        if self._state.views and isinstance(tail := self._state.views[-1].segment, FlatSegment):
            tail.sealed = True

    def replace(self, old: Sequence[Segment], new: Sequence[Segment]) -> None:
        """Publishes new segments in the place of neighbouring sealed ones (writing thread only)."""
        gone = {id(segment) for segment in old}
        views: list[View] = []
        for view in self._state.views:
            if view.segment is old[0]:
                views += [View(segment, segment.columns.used) for segment in new]
            if id(view.segment) not in gone:
                views.append(view)
        self._state = State(tuple(views), self._state.images)

    def matching(self, conditions: Conditions) -> Keys:
        """Keys of all rows that pass."""
        found = [np.empty(0, np.int64)]
        for view in self._state.views:
            rows = conditions.visible(view.segment.columns, view.rows)
            mask = conditions.mask(view.segment.columns, rows)
            found.append(
                view.segment.columns.key[:rows] if mask is None else view.segment.columns.key[:rows][mask]
            )
        return np.concatenate(found)

    def recent_queries(self) -> Vectors:
        """The different ones of the last query vectors, shape (queries, dimension), to tune indexes with."""
        recent = list(self._recent.copy())
        return np.unique(np.stack(recent), axis=0) if recent else np.empty((0, self.dimension), np.float32)

    def fetch(self, state: State, requests: Sequence[Fetch]) -> list[Candidates]:
        """Answers many requests in one pass over the vectors."""
        self._recent.extend(request.vectors[0].copy() for request in requests)
        totals = [0] * len(requests)
        parts: list[list[_Part]] = [[] for _ in requests]
        for view in state.views:
            segment = view.segment
            probes: list[tuple[int, Probe]] = []
            for index, rows, mask, matching in _selected(view, requests):
                totals[index] += matching
                count = requests[index].count
                if count is None or count >= matching:
                    chosen = np.arange(rows) if mask is None else np.flatnonzero(mask)
                    parts[index].append(_Part(segment, whole=chosen))
                else:
                    probes.append((index, Probe(requests[index].vectors, rows, mask, matching, count)))
            if probes:
                answers = segment.nearest([probe for _, probe in probes])
                for (index, _), found in zip(probes, answers, strict=True):
                    parts[index].append(_Part(segment, found))
        return [
            self._scored(request, part, total)
            for request, part, total in zip(requests, parts, totals, strict=True)
        ]

    def _scored(self, request: Fetch, parts: Sequence[_Part], total: int) -> Candidates:
        floors = self._floors(request, parts)
        keys: list[Keys] = [np.empty(0, np.int64)]
        images: list[Keys] = [np.empty(0, np.int64)]
        levels: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        against = np.concatenate([request.vectors, request.negatives])
        scores: list[Vectors] = [np.empty((0, len(against)), np.float32)]
        for part in parts:
            rows, columns = part.rows(floors), part.segment.columns
            keys.append(columns.key[rows])
            images.append(columns.image[rows])
            levels.append(columns.level[rows])
            scores.append(exact_scores(part.segment, rows, against))
        return Candidates(
            np.concatenate(keys),
            np.concatenate(images),
            np.concatenate(levels),
            np.concatenate(scores),
            complete=request.count is None or total <= request.count,
        )

    def _floors(self, request: Fetch, parts: Sequence[_Part]) -> list[float]:
        """For each query the score below which no row of any segment can be among the best `count`."""
        floors = [-np.inf] * len(request.vectors)
        for query in range(len(request.vectors)):
            scores = np.concatenate(
                [part.found[query][1] for part in parts if part.found] or [np.empty(0, np.float32)]
            )
            if request.count is not None and len(scores) > request.count:
                cut = len(scores) - request.count
                floors[query] = float(np.partition(scores, cut)[cut]) - 2 * rounding(self.dimension)
        return floors


def exact_scores(segment: Segment, rows: Positions, queries: Vectors) -> Vectors:
    """Cosines that do not depend on what else is computed beside them, shape (rows, queries).

    Products of a half and a single are exact in double precision and so, within 1e-14, are their sums;
    rounding to single precision hides the order of summation.
    """
    wide = queries.astype(np.float64).T
    scores = np.empty((len(rows), len(queries)), np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores[block] = segment.gather(rows[block]).astype(np.float64) @ wide
    return scores


def _selected(view: View, requests: Sequence[Fetch]) -> Iterator[tuple[int, int, Mask | None, int]]:
    """Request, visible rows, mask and number of matching rows, for the requests that match any row.

    Requests that share their conditions share the work of evaluating them.
    """
    seen: dict[int, tuple[int, Mask | None, int]] = {}
    for index, request in enumerate(requests):
        conditions = request.conditions
        if id(conditions) not in seen:
            rows = conditions.visible(view.segment.columns, view.rows)
            mask = conditions.mask(view.segment.columns, rows)
            seen[id(conditions)] = (rows, mask, rows if mask is None else int(np.count_nonzero(mask)))
        rows, mask, matching = seen[id(conditions)]
        if matching:
            yield index, rows, mask, matching
