"""Sealed segments on a GPU through FAISS, with the answers of the exact segment.

What FAISS's GPU indexes cannot do is done here: they ignore selectors without a word (faiss issues 3114,
3924), know no removal, give at most 2048 rows, and round queries to half precision. So more rows are
fetched than wanted, the unwanted ones are dropped, and the answer counts only if the worst fetched row
proves that nothing better can be missing; otherwise more are fetched, and at last the host decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.index.columns import Columns, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.device import MAX_COUNT
from services.searcher.embedded.index.nearest import answer_grouped, nearest_of, rounding
from services.searcher.embedded.index.segments import Neighbors, SegmentQuery
from services.searcher.types import Vectors

_SPARE = 32
_GATHER = 8
_HALF_ROUNDING = 2.0**-11


class DeviceIndex(Protocol):
    """The part of `faiss.GpuIndexFlatIP` that is used; one thread at a time may call it."""

    def search(self, queries: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows of the best `count` rows, best first, each of shape (queries, count)."""


class GpuSegment:
    """Half-precision vectors on a device, and on the host for what the device cannot do.

    Args:
        columns: The rows' columns.
        vectors: Shape (rows, dimension), float16.
        index: The same vectors on the device.
    """

    kind = "gpu-flat"
    sealed = True
    approximate = False
    recall: float | None = None

    def __init__(self, columns: Columns, vectors: NDArray[np.float16], index: DeviceIndex) -> None:
        self.columns = columns
        self.vectors = vectors
        self.index = index
        used = columns.scale[: columns.used]
        self._scales = (float(used.min(initial=1.0)), float(used.max(initial=1.0)))

    def gather(self, rows: Positions) -> Vectors:
        """See `IndexSegment.gather`."""
        return self.vectors[rows].astype(np.float32)

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `IndexSegment.nearest`; exact. Only the search thread may call it."""
        return answer_grouped(requests, self, self._is_gathered, self._search)

    def _is_gathered(self, request: SegmentQuery) -> bool:
        return request.matching <= self.columns.used // _GATHER

    def _search(self, queries: Vectors, request: SegmentQuery, count: int) -> list[Neighbors]:
        used = self.columns.used
        wanted = min(used, int((count + _SPARE) * used / request.matching * 1.25) + 1)
        found: list[Neighbors | None] = [None] * len(queries)
        open_queries = np.arange(len(queries))
        while len(open_queries) and wanted <= MAX_COUNT:
            scores, rows = self.index.search(np.ascontiguousarray(queries[open_queries]), wanted)
            for number, score, row in zip(open_queries.tolist(), scores, rows, strict=True):
                found[number] = self._certain(queries[number], request, count, score, row)
            open_queries = np.array([n for n in open_queries.tolist() if found[n] is None], np.intp)
            wanted = min(used, wanted * 2, MAX_COUNT) if wanted < min(used, MAX_COUNT) else MAX_COUNT + 1
        allowed = np.arange(request.rows) if request.mask is None else np.flatnonzero(request.mask)
        return [
            nearest_of(self, allowed, queries[number : number + 1], request, count)[0]
            if answer is None
            else answer
            for number, answer in enumerate(found)
        ]

    def _certain(
        self,
        query: Vectors,
        request: SegmentQuery,
        count: int,
        scores: Vectors,
        rows: NDArray[np.int64],
    ) -> Neighbors | None:
        """The answer that the fetched rows prove, or None."""
        real = rows >= 0
        rows, scores = rows[real], scores[real]
        kept = rows < request.rows
        if request.mask is not None:
            kept[kept] = request.mask[rows[kept]]
        answer = nearest_of(self, rows[kept], query[np.newaxis], request, count)[0] if kept.any() else None
        if answer is None or len(answer[0]) < min(count, request.matching):
            return None
        last = np.partition(answer[1], len(answer[1]) - count)[len(answer[1]) - count]
        # Rounding a unit query to half precision moves no score by more than this (Cauchy-Schwarz).
        slack = _HALF_ROUNDING + 2 * rounding(len(query))
        everything = len(rows) == self.columns.used
        limit = float(scores[-1]) + slack
        # The device does not know that the stored vectors are not quite of unit length.
        limit *= self._scales[limit > 0]
        return answer if everything or limit < last else None

    @property
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`; host memory, the device holds as much again."""
        return int(self.vectors.nbytes)


def build_gpu(compaction: CompactionInput, place: Callable[[NDArray[np.float16]], DeviceIndex]) -> GpuSegment:
    """A segment whose vectors `place` has brought to a device."""
    vectors = np.concatenate([block.astype(np.float16) for block in compaction.vectors()])
    return GpuSegment(compaction.columns(), vectors, place(vectors))
