"""What a segment of vectors is, and what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from services.searcher.embedded.index.columns import Columns, Mask, Positions
from services.searcher.types import Vectors

CHUNK_ROWS = 65_536
EXACT = np.inf
"""The effort of a request that scans all rows."""

Neighbors = tuple[Positions, Vectors]
"""Rows of a segment and their scores."""

_GATHER = 8


@dataclass(frozen=True, slots=True)
class SegmentQuery:
    """The part of a `VectorQuery` that concerns one segment.

    Attributes:
        queries: Unit vectors, shape (queries, dimension).
        rows: How many of the segment's first rows it sees.
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
        kind: Name of the index, in statistics and of its files.
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

    def gather(self, rows: Positions) -> Vectors:
        """The stored vectors of rows, float32, shape (rows, dimension)."""

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """For each request and each of its queries the rows that can be among the best `count`.

        Exact kinds return all rows whose true score is at least that of the `count`-th best; by image at
        least the best rows of the `count` best images. The scores that come along are good to
        `rounding(dimension)`.
        """

    @property
    def vector_bytes(self) -> int:
        """Memory of the vectors in bytes."""


@dataclass(frozen=True, slots=True)
class View:
    """A segment and how many of its rows a reader may see."""

    segment: IndexSegment
    rows: int
