"""Segments that look for candidates by small codes and score them again by their stored vectors, on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain, groupby

import numpy as np

from services.searcher.embedded.faiss_compat import to_single
from services.searcher.embedded.index.columns import Columns, Mask, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import answer_grouped, nearest_of
from services.searcher.embedded.index.segment_files import Arrays, SegmentFiles, StoredVectors
from services.searcher.embedded.index.segments import IndexSegment, Neighbors, SegmentQuery
from services.searcher.types import Vectors

_GATHER_ROWS = 1000
_GATHER_PART = 64
_BLOCK = 8192
_VECTOR_BYTES, _LIST_BYTES = 2, 2  # of each component, in the vectors; in the lists and what goes with them
_MOST_FILES = 8


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

    def __init__(
        self, columns: Columns, vectors: StoredVectors, files: SegmentFiles, most_effort: int
    ) -> None:
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

    @property
    def may_improve(self) -> bool:
        """Whether it could look further."""
        return self.effort < self.most_effort

    def gather(self, rows: Positions) -> Vectors:
        """See `IndexSegment.gather`."""
        return to_single(self.vectors[rows])

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `IndexSegment.nearest`; approximate unless asked otherwise. Filters hold, pages are filled."""
        return answer_grouped(requests, self, self._is_gathered, self._search)

    def _is_gathered(self, request: SegmentQuery) -> bool:
        """Whether copying and scoring the rows that pass costs less than a scan of the codes."""
        return request.matching <= max(_GATHER_ROWS, self.columns.used // _GATHER_PART)

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

    def passing(self, request: SegmentQuery) -> Mask | None:
        """Which of all rows a request selects; None for all."""
        if request.rows == self.columns.used:
            return request.mask
        mask = np.zeros(self.columns.used, np.bool_)
        mask[: request.rows] = True if request.mask is None else request.mask
        return mask

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


def store_vectors(compaction: CompactionInput, files: SegmentFiles) -> StoredVectors:
    """Stores the vectors of a compaction's rows; the files of segments that are taken whole stay as they are.

    Raises:
        OSError: The disk refuses it.
    """
    taken = [source for source in compaction.sources if len(compaction.taken_from(source)[1])]
    for linked, sources in groupby(taken, lambda source: _is_linked(source, compaction)):
        if linked:
            for source in sources:
                assert isinstance(source, ApproximateSegment)
                files.link_vectors(source.files)
        else:
            files.write_vectors(chain.from_iterable(map(compaction.vectors_of, sources)))
    return files.vectors(len(compaction), compaction.dimension)


def stored_bytes(compaction: CompactionInput) -> int:
    """Bytes on disk that a segment of the rows will add: its vectors, its lists, and what goes with them."""
    written = sum(
        len(compaction.taken_from(source)[1])
        for source in compaction.sources
        if not _is_linked(source, compaction)
    )
    return compaction.dimension * (_VECTOR_BYTES * written + _LIST_BYTES * len(compaction))


def _is_linked(source: IndexSegment, compaction: CompactionInput) -> bool:
    """Whether a source's files are kept: not those with dead rows, nor many small ones."""
    rows = len(compaction.taken_from(source)[1])
    return (
        isinstance(source, ApproximateSegment)
        and rows == source.columns.used
        and rows * _MOST_FILES >= len(compaction)
        and len(source.files.parts) <= _MOST_FILES
    )
