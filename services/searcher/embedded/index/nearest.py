"""The best rows of a segment: exactly, by image, and with all that may tie; the segment that is searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from services.searcher.embedded.faiss_compat import product, product_of
from services.searcher.embedded.index.columns import Columns, Positions
from services.searcher.embedded.index.segments import CHUNK_ROWS, IndexSegment, Neighbors, SegmentQuery
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.types import Vectors

_SAMPLE = 4096
_BLOCK = 1 << 18  # components that are copied at a time for each query, which stay in the cache
_LEAST_BLOCK = 64  # rows
_MOST_ROWS = 2048


def grouped(requests: Sequence[SegmentQuery]) -> list[list[int]]:
    """Groups the numbers of requests that select the same rows in the same way; each is answered at once."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, request in enumerate(requests):
        alone = number if request.below < np.inf else -1
        key = (
            id(request.mask),
            request.rows,
            request.by_image,
            request.effort,
            alone,
        )
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def answer_grouped(
    requests: Sequence[SegmentQuery],
    segment: IndexSegment,
    is_gathered: Callable[[SegmentQuery], bool],
    search: Callable[[Vectors, SegmentQuery, int], list[Neighbors]],
) -> list[list[Neighbors]]:
    """Answers requests group by group: over few rows exactly, by copying them, the others by `search`.

    Args:
        requests: What is asked.
        segment: The segment.
        is_gathered: Whether copying the rows of a request is cheaper than a search.
        search: Finds the best rows for queries that share a request's rows and mask; the last argument is the
            count.
    """
    answers: list[list[Neighbors]] = [[] for _ in requests]
    for together in grouped(requests):
        same = [requests[number] for number in together]
        first = same[0]
        if first.exhaustive or is_gathered(first):
            found = nearest_selected(same, segment)
        else:
            found = _answer_together(
                same,
                lambda queries, request, count: _by_search(segment, queries, request, count, search),
            )
        for number, answer in zip(together, found, strict=True):
            answers[number] = answer
    return answers


def nearest_selected(requests: Sequence[SegmentQuery], segment: IndexSegment) -> list[list[Neighbors]]:
    """Exact answers to requests that share their rows and mask; the rows are copied once, in blocks."""
    first = requests[0]
    rows = np.arange(first.rows) if first.mask is None else np.flatnonzero(first.mask)
    return _answer_together(
        requests,
        lambda queries, request, count: nearest_of(segment, rows, queries, request, count),
    )


def _by_search(
    segment: IndexSegment,
    queries: Vectors,
    request: SegmentQuery,
    count: int,
    search: Callable[[Vectors, SegmentQuery, int], list[Neighbors]],
) -> list[Neighbors]:
    """Searches; by image with a growing count, until the rows belong to enough images."""
    if not request.by_image:
        return search(queries, request, count)
    asked = 4 * count
    while asked < min(request.matching, _MOST_ROWS):
        found = search(queries, request, asked)
        if all(len(np.unique(segment.columns.image_rowid[rows])) >= count for rows, _ in found):
            return found
        asked *= 4
    rows = np.arange(request.rows) if request.mask is None else np.flatnonzero(request.mask)
    return nearest_of(segment, rows, queries, request, count)


def _answer_together(
    requests: Sequence[SegmentQuery], search: Callable[[Vectors, SegmentQuery, int], list[Neighbors]]
) -> list[list[Neighbors]]:
    queries = np.concatenate([request.queries for request in requests])
    count = min(requests[0].matching, max(request.count for request in requests))
    remaining = iter(search(queries, requests[0], count))
    return [list(islice(remaining, len(request.queries))) for request in requests]


def nearest_of(
    segment: IndexSegment, rows: Positions, queries: Vectors, request: SegmentQuery, count: int
) -> list[Neighbors]:
    """The exact best `count` of some rows for each query, with what ties."""
    if isinstance(segment, FlatSegment):
        scores = product_of(queries, segment.vectors, rows)
    else:
        step = max(_LEAST_BLOCK, len(queries) * _BLOCK // queries.shape[1])
        scores = np.concatenate(
            [np.empty((len(queries), 0), np.float32)]
            + [
                product(queries, segment.gather(rows[start : start + step]))
                for start in range(0, len(rows), step)
            ],
            axis=1,
        )
    scores *= segment.columns.scale[rows]
    found = chosen(scores, segment.columns, rows, request, count)
    return [(rows[places], row[places]) for row, places in zip(scores, found, strict=True)]


def chosen(
    scores: Vectors, columns: Columns, rows: Positions | slice, request: SegmentQuery, count: int
) -> list[Positions]:
    """For each query the places of the best rows, as `SegmentQuery` describes them.

    Args:
        scores: Shape (queries, rows); minus infinity for rows that do not count. Overwritten.
        columns: The segment's columns.
        rows: Which of its rows they are, ascending.
        request: The request.
        count: How many are.
    """
    margin = 2 * rounding(request.queries.shape[1])
    images = columns.image_rowid[rows] if request.by_image else None
    runs = None if images is None else _Runs(images)
    exact = None
    if request.below < np.inf:
        # Who may score just `below` comes along in any case; who scores more has been seen.
        top = scores.max(axis=0) if runs is None else runs.spread(scores.max(axis=0))
        scores[:, top > request.below + margin] = -np.inf
        maybe = (top <= request.below + margin) & (top >= request.below - margin)
        exact = np.flatnonzero(maybe & (scores > -np.inf).any(axis=0))
    found: list[Positions] = []
    for row in scores:
        free = row
        if exact is not None and len(exact):
            free = row.copy()
            free[exact] = -np.inf
        places = best(free, count, margin) if runs is None else runs.best(free, count, margin)
        found.append(places if exact is None else np.union1d(places, exact))
    return found


class _Runs:
    """Rows gathered by image.

    Args:
        images: The image of each row, shape (rows,).
    """

    def __init__(self, images: RowIds) -> None:
        ascending = bool((images[1:] >= images[:-1]).all())
        self._order = None if ascending else np.argsort(images, kind="stable")
        ordered = images if self._order is None else images[self._order]
        changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        self._starts = np.concatenate([[0], changes]) if len(images) else changes
        self._counts = np.diff(np.append(self._starts, len(images)))

    def tops(self, scores: Vectors) -> Vectors:
        """The best score of each image."""
        ordered = scores if self._order is None else scores[self._order]
        return np.maximum.reduceat(ordered, self._starts) if len(ordered) else ordered

    def spread(self, scores: Vectors) -> Vectors:
        """For each row the best score of its image."""
        return self._spread(self.tops(scores))

    def best(self, scores: Vectors, count: int, margin: float) -> Positions:
        """Rows within `margin` of the best of their image, for the `count` best images and those that tie."""
        tops = self.tops(scores)
        floor = np.full(len(tops), np.inf, np.float32)
        kept = best(tops, count, margin)
        floor[kept] = tops[kept] - margin
        return np.flatnonzero((scores >= self._spread(floor)) & (scores > -np.inf))

    def _spread(self, values: Vectors) -> Vectors:
        spread = np.repeat(values, self._counts)
        if self._order is None:
            return spread
        placed = np.empty_like(spread)
        placed[self._order] = spread
        return placed


def rounding(dimension: int) -> float:
    """Bound on the rounding error of a float32 cosine with a stored vector, in any order of its sums."""
    return 2 * dimension * float(np.finfo(np.float32).eps)


def best(scores: Vectors, count: int, margin: float) -> Positions:
    """Positions of the `count` highest scores and of all within `margin` of the last of them, in any order.

    Scores of minus infinity are never among them.
    """
    total = len(scores)
    if count < total:
        # The count-th best of a sample is never above that of all, and hardly any other scores reach it.
        sample = scores[:: max(1, total // _SAMPLE)]
        if 4 * count < len(sample) < total:
            floor = np.partition(sample, len(sample) - count)[len(sample) - count] - margin
            likely = np.flatnonzero(scores >= floor)
            if len(likely) < total // 2:
                return likely[_best(scores[likely], count, margin)]
    return _best(scores, count, margin)


def _best(scores: Vectors, count: int, margin: float) -> Positions:
    cut = len(scores) - count
    last = np.partition(scores, cut)[cut] - margin if cut > 0 else -np.inf
    return np.flatnonzero(scores >= max(last, np.finfo(np.float32).min))


class FlatSegment:
    """Up to `capacity` float32 vectors, searched exactly with one matrix product.

    Args:
        dimension: Length of the vectors.
        capacity: Rows. The memory is touched only as rows are written.
    """

    kind = "flat"
    recall: float | None = None
    sealed = False
    approximate = False

    def __init__(self, dimension: int, capacity: int = CHUNK_ROWS) -> None:
        self.columns = Columns(capacity)
        self.vectors: Vectors = np.empty((capacity, dimension), np.float32)

    def append(self, rows: Rows, added: RowIds, start: int) -> int:
        """Writes as many rows from `start` on as there is room for; returns the first one left over."""
        columns = self.columns
        stop = min(len(rows), start + columns.capacity - columns.used)
        self.vectors[columns.used : columns.used + stop - start] = rows.vectors[start:stop]
        columns.write(rows, added, start, stop)
        self.sealed = columns.used == columns.capacity
        return stop

    def gather(self, rows: Positions) -> Vectors:
        """See `IndexSegment.gather`."""
        return self.vectors[rows]

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `IndexSegment.nearest`. All requests for many rows share one matrix product."""
        answers: list[list[Neighbors]] = [[] for _ in requests]
        broad: list[int] = []
        for together in grouped(requests):
            if not requests[together[0]].selective:
                broad += together
                continue
            found = nearest_selected([requests[number] for number in together], self)
            for number, answer in zip(together, found, strict=True):
                answers[number] = answer
        if broad:
            most = max(requests[number].rows for number in broad)
            scores = product(
                np.concatenate([requests[number].queries for number in broad]), self.vectors[:most]
            )
            scores *= self.columns.scale[:most]
            passed = 0
            for number in broad:
                request = requests[number]
                visible = scores[passed : passed + len(request.queries), : request.rows]
                passed += len(request.queries)
                if request.mask is not None:
                    visible[:, ~request.mask] = -np.inf
                count = min(request.count, request.matching)
                rows = chosen(visible, self.columns, slice(0, request.rows), request, count)
                answers[number] = [(found, row[found]) for row, found in zip(visible, rows, strict=True)]
        return answers

    @property
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`."""
        return self.columns.used * int(self.vectors.shape[1]) * 4
