"""The exact segment: vectors side by side, searched with one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.searcher.embedded.index.compute_threads import product
from services.searcher.embedded.index.segments import (
    CHUNK_ROWS,
    Columns,
    Neighbors,
    Positions,
    SegmentQuery,
    chosen,
    grouped,
    nearest_selected,
)
from services.searcher.embedded.store.rows import Keys, Rows
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

    def append(self, rows: Rows, added: Keys, start: int) -> int:
        """Writes as many rows from `start` on as there is room for; returns the first one left over."""
        columns = self.columns
        stop = min(len(rows), start + columns.capacity - columns.used)
        self.vectors[columns.used : columns.used + stop - start] = rows.vectors[start:stop]
        columns.write(rows, added, start, stop)
        self.sealed = columns.used == columns.capacity
        return stop

    def gather(self, rows: Positions) -> Vectors:
        """See `Segment.gather`."""
        return self.vectors[rows]

    def nearest(self, nprobe: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `Segment.nearest`. All probes that look at many rows share one matrix product."""
        answers: list[list[Neighbors]] = [[] for _ in nprobe]
        broad: list[int] = []
        for together in grouped(nprobe):
            if not nprobe[together[0]].selective:
                broad += together
                continue
            found = nearest_selected([nprobe[number] for number in together], self)
            for number, answer in zip(together, found, strict=True):
                answers[number] = answer
        if broad:
            most = max(nprobe[number].rows for number in broad)
            scores = product(
                np.concatenate([nprobe[number].queries for number in broad]), self.vectors[:most]
            )
            scores *= self.columns.scale[:most]
            passed = 0
            for number in broad:
                probe = nprobe[number]
                visible = scores[passed : passed + len(probe.queries), : probe.rows]
                passed += len(probe.queries)
                if probe.mask is not None:
                    visible[:, ~probe.mask] = -np.inf
                count = min(probe.count, probe.matching)
                rows = chosen(visible, self.columns, slice(0, probe.rows), probe, count)
                answers[number] = [(found, row[found]) for row, found in zip(visible, rows, strict=True)]
        return answers

    @property
    def vector_bytes(self) -> int:
        """See `Segment.vector_bytes`."""
        return self.columns.used * int(self.vectors.shape[1]) * 4
