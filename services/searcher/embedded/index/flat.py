"""The exact segment: vectors side by side, searched with one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.searcher.embedded.index.columns import Columns, Positions
from services.searcher.embedded.index.compute_threads import product
from services.searcher.embedded.index.nearest import chosen, grouped, nearest_selected
from services.searcher.embedded.index.segments import CHUNK_ROWS, Neighbors, SegmentQuery
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.types import Vectors


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
