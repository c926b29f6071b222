"""Segments that look for candidates by small codes and score them again by their stored vectors, on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.searcher.embedded.faiss_compat import selector, to_single
from services.searcher.embedded.index.columns import Columns, Positions
from services.searcher.embedded.index.index_files import Arrays, Halves, SegmentFiles
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import answer_grouped, nearest_of
from services.searcher.embedded.index.segments import Neighbors, SegmentQuery
from services.searcher.types import Vectors

_GATHER_ROWS = 1000
_GATHER_PART = 64
_BLOCK = 8192


class ApproximateSegment(ABC):
    """A sealed segment that may overlook rows. Its stored vectors are mapped, its candidates' scores exact.

    Args:
        columns: The rows' columns.
        vectors: Shape (rows, dimension).
        files: Where it is stored.
        most_effort: The effort at which it finds everything.

    Attributes:
        effort: How far it looks, such as nprobe.
        recalls: recall@10 by kind of query, when it was measured last.
        seen: Kinds whose recall was measured with real queries.
    """

    kind = ""
    sealed = True
    approximate = True

    def __init__(self, columns: Columns, vectors: Halves, files: SegmentFiles, most_effort: int) -> None:
        self.columns = columns
        self.vectors = vectors
        self.files = files
        self.effort = 1
        self.most_effort = most_effort
        self.recalls: dict[QueryKind, float] = {}
        self.seen: set[QueryKind] = set()

    @property
    def recall(self) -> float | None:
        """See `IndexSegment`."""
        return min(self.recalls.values(), default=None)

    def gather(self, rows: Positions) -> Vectors:
        """See `IndexSegment.gather`."""
        return to_single(self.vectors[rows])

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `IndexSegment.nearest`; approximate unless asked otherwise. Filters hold, pages are filled."""
        gather_below = max(_GATHER_ROWS, self.columns.used // _GATHER_PART)
        return answer_grouped(requests, self, gather_below, self._search)

    def _search(self, queries: Vectors, request: SegmentQuery, count: int) -> list[Neighbors]:
        candidates = self.candidates(queries, request, count)
        if candidates is None:
            rows = np.arange(request.rows) if request.mask is None else np.flatnonzero(request.mask)
            return nearest_of(self, rows, queries, request, count)
        found: list[Neighbors] = []
        step = max(1, _BLOCK // candidates.shape[1])
        for start in range(0, len(queries), step):
            these = candidates[start : start + step]
            vectors = self.gather(these.ravel()).reshape(*these.shape, -1)
            scores = (vectors @ queries[start : start + step, :, np.newaxis])[:, :, 0]
            scores *= self.columns.scale[these]
            found += [(row[row >= 0], score[row >= 0]) for row, score in zip(these, scores, strict=True)]
        return found

    @abstractmethod
    def candidates(self, queries: Vectors, request: SegmentQuery, count: int) -> Positions | None:
        """At least `count` rows for each query among which its best are likely to be; -1 stands for none.

        Shape (queries, any). None where scoring all rows costs no more.
        """

    def selection(self, request: SegmentQuery) -> dict[str, Any]:
        """FAISS's parameters that restrict a search to the rows of a request."""
        mask = request.mask
        if request.rows < self.columns.used:
            mask = np.zeros(self.columns.used, np.bool_)
            mask[: request.rows] = True if request.mask is None else request.mask
        return {} if mask is None else {"sel": selector(mask)}

    @property
    @abstractmethod
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`; without what is mapped."""

    def to_arrays(self) -> Arrays:
        """What is needed in addition to rows and files to restore the segment."""
        recalls = {f"recall_{kind.value}": np.array(recall) for kind, recall in self.recalls.items()}
        return {"effort": np.array(self.effort), **recalls}

    def restore(self, arrays: Arrays) -> None:
        """Takes effort and recall of what `to_arrays` returned.

        Raises:
            KeyError: `arrays` is something else.
        """
        self.effort = int(arrays["effort"])
        names = {kind: f"recall_{kind.value}" for kind in QueryKind}
        self.recalls = {kind: float(arrays[name]) for kind, name in names.items() if name in arrays}
