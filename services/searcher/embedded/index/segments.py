"""Rows in memory: the columns that filters read, and the interface of every segment of vectors.

A segment's rows lie in ascending order of key and of the write that added them. The writing thread appends
behind the rows that readers know of, and marks removals in place with the number of the removing write; a
reader that looks at write `s` sees the rows with ``added <= s < removed``. So neither side ever waits for
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.index.compute_threads import product
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.types import Vectors

CHUNK_ROWS = 65_536
NEVER = np.iinfo(np.int64).max
EXACT = np.inf
"""The effort of a request that scans all rows."""

Mask = NDArray[np.bool_]
Positions = NDArray[np.intp]
Neighbors = tuple[Positions, Vectors]
"""Rows of a segment and their scores."""
Contents = NDArray[np.uint64]

_SAMPLE = 4096
_GATHER = 8
_BLOCK = 8192
_SEED = 20_111
_MOST_ROWS = 2048

_COLUMNS: dict[str, type[np.generic]] = {
    "record_rowid": np.int64,
    "image_rowid": np.int64,
    "level": np.uint8,
    "area": np.int64,
    "predicted_iou": np.float32,
    "stability_score": np.float32,
    "created_ms": np.int64,
    "added": np.int64,
    "removed": np.int64,
    "scale": np.float32,
    "content": np.uint64,
}
_COMPUTED = ("added", "removed", "scale", "content")


class Columns:
    """Everything but the vector of each row, one array a column.

    Attributes:
        scale: One over the length of the stored vector, which rounding to half precision moves off one.
        content: Equal for equal vectors, different for different ones.
        used: Rows written so far; readers take the number from their own view instead.
        dead: Tombstones, the rows marked removed.
        orders: Rows of some blocks in the order of their ids, by block (see `queries/tie_order.py`).
    """

    record_rowid: RowIds
    image_rowid: RowIds
    level: NDArray[np.uint8]
    area: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    created_ms: RowIds
    added: RowIds
    removed: RowIds
    scale: Vectors
    content: Contents

    def __init__(self, capacity: int) -> None:
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.empty(capacity, dtype))
        self.capacity = capacity
        self.used = 0
        self.dead = 0
        self.orders: dict[int, tuple[int, Positions]] = {}
        self._by_image: tuple[int, Positions] | None = None
        self._ascending = (
            True  # whether images lie in ascending order, as they do unless old ones get records
        )

    def write(self, rows: Rows, added: RowIds, start: int, stop: int) -> None:
        """Appends rows `start` to `stop` of a batch. The caller publishes them."""
        place = slice(self.used, self.used + stop - start)
        for name in _COLUMNS:
            if name not in _COMPUTED:
                getattr(self, name)[place] = getattr(rows, name)[start:stop]
        vectors = rows.vectors[start:stop]
        self.added[place] = added[start:stop]
        self.removed[place] = NEVER
        self.scale[place] = 1.0 / np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        self.content[place] = contents(vectors)
        self._note_order(place)
        self.used = place.stop

    def take(self, other: Columns, rows: Positions) -> None:
        """Appends chosen rows of other columns, removals included."""
        place = slice(self.used, self.used + len(rows))
        for name in _COLUMNS:
            getattr(self, name)[place] = getattr(other, name)[rows]
        self.dead += int(np.count_nonzero(self.removed[place] != NEVER))
        self._note_order(place)
        self.used = place.stop

    def remove(self, keys: RowIds, seq: int) -> int:
        """Marks those of the keys that are here; returns how many were."""
        rows = self.rows_of_records(keys, self.used)
        rows = rows[self.removed[rows] == NEVER]
        self.removed[rows] = seq
        self.dead += len(rows)
        return len(rows)

    def rows_of_records(self, keys: RowIds, rows: int) -> Positions:
        """The rows, of the first `rows`, whose record rowid is among the keys."""
        found = np.searchsorted(self.record_rowid[:rows], keys)
        inside = found < rows
        found, keys = found[inside], keys[inside]
        matching: Positions = found[self.record_rowid[found] == keys]
        return matching

    def rows_of_images(self, images: RowIds, rows: int) -> Positions:
        """The rows, of the first `rows`, that belong to one of the images, ascending."""
        order = self.by_image(rows)
        column = self.image_rowid[:rows] if order is None else self.image_rowid[order]
        images = np.unique(images)
        first = np.searchsorted(column, images, side="left")
        counts = np.searchsorted(column, images, side="right") - first
        # Each image's run of rows, one behind the other.
        runs = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        found: Positions = runs + np.arange(counts.sum())
        if order is not None:
            chosen: Positions = order[found]
            found = np.sort(chosen[chosen < rows])
        return found

    def by_image(self, rows: int) -> Positions | None:
        """At least the first `rows` rows in ascending order of their images; None where they lie so."""
        if self._ascending:
            return None
        known = self._by_image
        if known is None or known[0] < rows:
            used = self.used
            known = self._by_image = (used, np.argsort(self.image_rowid[:used], kind="stable"))
        return known[1]

    def _note_order(self, place: slice) -> None:
        image = self.image_rowid[max(0, place.start - 1) : place.stop]
        self._ascending = self._ascending and bool((image[1:] >= image[:-1]).all())

    @property
    def nbytes(self) -> int:
        """Memory that is taken up by written rows, in bytes."""
        return self.used * sum(np.dtype(dtype).itemsize for dtype in _COLUMNS.values())


def contents(vectors: Vectors) -> Contents:
    """One number a vector, from the bits of its components: equal vectors have equal numbers."""
    words = np.ascontiguousarray(vectors).view(np.uint32 if vectors.shape[1] % 2 else np.uint64)
    sums: Contents = words.astype(np.uint64, copy=False) @ _multipliers(words.shape[1])
    return sums


@lru_cache(maxsize=64)
def _multipliers(count: int) -> Contents:
    numbers = np.random.default_rng(_SEED).integers(0, 1 << 63, count, np.uint64)
    return (numbers << np.uint64(1)) | np.uint64(1)


@dataclass(frozen=True, slots=True)
class SegmentQuery:
    """The part of a `VectorQuery` that concerns one segment.

    Attributes:
        queries: Unit vectors, shape (queries, dimension).
        rows: Only the first so many rows exist for it.
        mask: Which of them count, shape (rows,); None means all.
        matching: How many count.
        count: How many of the best are wanted for each query.
        by_image: Whether `count` counts images; an image is as good as its best row.
        below: The best score that is wanted. Rows that may score just this come in addition to `count`; rows
            that score more, and by image all of their image's, do not count.
        effort: How far an approximate segment looks, as a multiple of what it was tuned to; `EXACT` leaves
            nothing out.
    """

    queries: Vectors
    rows: int
    mask: Mask | None
    matching: int
    count: int
    by_image: bool = False
    below: float = np.inf
    effort: float = 1.0

    @property
    def selective(self) -> bool:
        """Whether so few rows count that copying them is cheaper than scoring all."""
        return self.mask is not None and self.matching < self.rows // _GATHER

    @property
    def exhaustive(self) -> bool:
        """Whether an approximate segment has to scan all rows."""
        return self.effort == EXACT or self.below < np.inf


class IndexSegment(Protocol):
    """A part of the index: rows, their vectors, and a way to find the nearest of them.

    Attributes:
        columns: What is known of the rows.
        kind: Name of the index, for statistics.
        recall: recall@10 of the kind of query that fares worst, against exact search; None where it is exact.
        sealed: Whether no further rows come.
        approximate: Whether it may overlook rows.
    """

    columns: Columns
    kind: str
    sealed: bool
    approximate: bool

    @property
    def recall(self) -> float | None:
        """See the class."""
        ...

    def gather(self, rows: Positions) -> Vectors:
        """The stored vectors of rows, float32, shape (rows, dimension)."""
        ...

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """For each request and each of its queries the rows that can be among the best `count`.

        Exact kinds return all rows whose true score is at least that of the `count`-th best; by image at
        least the best rows of the `count` best images. The scores that come along are good to
        `rounding(dimension)`.
        """
        ...

    @property
    def vector_bytes(self) -> int:
        """Memory of the vectors in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """A segment and how many of its rows a reader may see."""

    segment: IndexSegment
    rows: int


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
    gather_below: float,
    search: Callable[[Vectors, SegmentQuery, int], list[Neighbors]],
) -> list[list[Neighbors]]:
    """Answers requests group by group: over few rows exactly, by copying them, the others by `search`.

    Args:
        requests: What is asked.
        segment: The segment.
        gather_below: Rows up to which copying them is cheaper than a search.
        search: Finds the best rows for queries that share a request's rows and mask; the last argument is the
            count.
    """
    answers: list[list[Neighbors]] = [[] for _ in requests]
    for together in grouped(requests):
        same = [requests[number] for number in together]
        first = same[0]
        if first.exhaustive or first.matching <= gather_below:
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
    scores = np.concatenate(
        [np.empty((len(queries), 0), np.float32)]
        + [
            product(queries, segment.gather(rows[start : start + _BLOCK]))
            for start in range(0, len(rows), _BLOCK)
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
        columns: Of the segment.
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
        images: Of each row, shape (rows,).
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
