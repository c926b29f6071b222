"""Rows in memory: the columns that filters read, and exact segments of vectors.

A segment's rows lie in ascending order of key and of the write that added them. The writing thread appends
behind the rows that readers know of, and marks removals in place with the number of the removing write; a
reader that looks at write `s` sees the rows with ``added <= s < removed``. So neither side ever waits for
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.rows import Keys, Rows
from services.searcher.types import Vectors

CHUNK_ROWS = 65_536
NEVER = np.iinfo(np.int64).max

Mask = NDArray[np.bool_]
Positions = NDArray[np.intp]
Found = tuple[Positions, Vectors]
"""Rows of a segment and their scores."""

_SAMPLE = 4096
_GATHER = 8
_BLOCK = 8192

_COLUMNS: dict[str, type[np.generic]] = {
    "key": np.int64,
    "image": np.int64,
    "level": np.uint8,
    "area": np.int64,
    "predicted_iou": np.float32,
    "stability_score": np.float32,
    "created_ms": np.int64,
    "added": np.int64,
    "removed": np.int64,
}


class Columns:
    """What is known of each row besides its vector, one array a column.

    Attributes:
        used: Rows written so far; readers take the number from their own view instead.
        dead: Rows marked removed.
    """

    key: Keys
    image: Keys
    level: NDArray[np.uint8]
    area: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    created_ms: Keys
    added: Keys
    removed: Keys

    def __init__(self, capacity: int) -> None:
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.empty(capacity, dtype))
        self.capacity = capacity
        self.used = 0
        self.dead = 0

    def write(self, rows: Rows, added: Keys, start: int, stop: int) -> None:
        """Appends rows `start` to `stop` of a batch. The caller publishes them."""
        place = slice(self.used, self.used + stop - start)
        for name in _COLUMNS:
            if name not in ("added", "removed"):
                getattr(self, name)[place] = getattr(rows, name)[start:stop]
        self.added[place] = added[start:stop]
        self.removed[place] = NEVER
        self.used = place.stop

    def take(self, other: Columns, rows: Positions) -> None:
        """Appends chosen rows of other columns, removals included."""
        place = slice(self.used, self.used + len(rows))
        for name in _COLUMNS:
            getattr(self, name)[place] = getattr(other, name)[rows]
        self.dead += int(np.count_nonzero(self.removed[place] != NEVER))
        self.used = place.stop

    def remove(self, keys: Keys, seq: int) -> int:
        """Marks those of the keys that are here; returns how many were."""
        rows = np.searchsorted(self.key[: self.used], keys)
        inside = rows < self.used
        rows, keys = rows[inside], keys[inside]
        rows = rows[self.key[rows] == keys]
        rows = rows[self.removed[rows] == NEVER]
        self.removed[rows] = seq
        self.dead += len(rows)
        return len(rows)

    @property
    def nbytes(self) -> int:
        """Memory that is taken up by written rows, in bytes."""
        return self.used * sum(np.dtype(dtype).itemsize for dtype in _COLUMNS.values())


@dataclass(frozen=True, slots=True)
class Probe:
    """What one request asks of one segment.

    Attributes:
        queries: Unit vectors, shape (queries, dimension).
        rows: Only the first so many rows exist for it.
        mask: Which of them count, shape (rows,); None means all.
        matching: How many count.
        count: How many of the best are wanted for each query.
    """

    queries: Vectors
    rows: int
    mask: Mask | None
    matching: int
    count: int

    @property
    def selective(self) -> bool:
        """Whether so few rows count that copying them is cheaper than scoring all."""
        return self.mask is not None and self.matching < self.rows // _GATHER


class Segment(Protocol):
    """A part of the index: rows, their vectors, and a way to find the nearest of them.

    Attributes:
        columns: What is known of the rows.
        kind: Name of the index, for statistics.
        recall: recall@10 against exact search, measured when it was built; None where it is exact.
        sealed: Whether no further rows come.
    """

    columns: Columns
    kind: str
    recall: float | None
    sealed: bool

    def gather(self, rows: Positions) -> Vectors:
        """The stored vectors of rows, float32, shape (rows, dimension)."""
        ...

    def nearest(self, probes: Sequence[Probe]) -> list[list[Found]]:
        """For each probe and each of its queries the rows that can be among the best `count`.

        Exact kinds return all rows whose true score is at least that of the `count`-th best. The scores
        that come along are good to `rounding(dimension)`.
        """
        ...

    @property
    def vector_bytes(self) -> int:
        """Memory of the vectors in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """A segment and how many of its rows a reader may see."""

    segment: Segment
    rows: int


def product(queries: Vectors, vectors: Vectors) -> Vectors:
    """Dot products, shape (queries, vectors)."""
    if len(queries) == 1:
        return np.asarray(vectors @ queries[0])[np.newaxis]
    return np.asarray(queries @ vectors.T)


def grouped(probes: Sequence[Probe]) -> list[list[int]]:
    """Numbers of the probes that look at the same rows, which can be answered together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, probe in enumerate(probes):
        groups.setdefault((id(probe.mask), probe.rows), []).append(number)
    return list(groups.values())


def answer_grouped(
    probes: Sequence[Probe],
    gather: Callable[[Positions], Vectors],
    search: Callable[[Vectors, Probe, int], list[Found]],
) -> list[list[Found]]:
    """Answers probes group by group: selective ones exactly, over their few rows, the others by `search`.

    Args:
        probes: What is asked.
        gather: Gives the vectors of rows.
        search: Finds the rows for queries that share a probe's rows and mask; the last argument is the count.
    """
    answers: list[list[Found]] = [[] for _ in probes]
    for together in grouped(probes):
        same = [probes[number] for number in together]
        found = nearest_selected(same, gather) if same[0].selective else _answer_together(same, search)
        for number, answer in zip(together, found, strict=True):
            answers[number] = answer
    return answers


def nearest_selected(probes: Sequence[Probe], gather: Callable[[Positions], Vectors]) -> list[list[Found]]:
    """Exact answers to selective probes that share their rows and mask; the few rows are copied once."""
    assert probes[0].mask is not None
    rows = np.flatnonzero(probes[0].mask)
    return _answer_together(probes, lambda queries, probe, count: nearest_of(rows, queries, count, gather))


def _answer_together(
    probes: Sequence[Probe], search: Callable[[Vectors, Probe, int], list[Found]]
) -> list[list[Found]]:
    queries = np.concatenate([probe.queries for probe in probes])
    count = min(probes[0].matching, max(probe.count for probe in probes))
    remaining = iter(search(queries, probes[0], count))
    return [list(islice(remaining, len(probe.queries))) for probe in probes]


def nearest_of(
    rows: Positions, queries: Vectors, count: int, gather: Callable[[Positions], Vectors]
) -> list[Found]:
    """The exact best `count` of a few rows for each query, with what ties."""
    scores = np.concatenate(
        [product(queries, gather(rows[start : start + _BLOCK])) for start in range(0, len(rows), _BLOCK)],
        axis=1,
    )
    margin = 2 * rounding(queries.shape[1])
    return [(rows[kept], row[kept]) for row in scores for kept in [best(row, count, margin)]]


def rounding(dimension: int) -> float:
    """Bound on the rounding error of a float32 dot product of two unit vectors, in any order of its sums."""
    return dimension * float(np.finfo(np.float32).eps)


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
