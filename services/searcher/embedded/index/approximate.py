"""Segments that look for candidates by small codes and score them again by their stored vectors, on disk.

Among them inverted lists of 8-bit codes (FAISS IVF, SQ8), which are mapped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.faiss_compat import faiss, selector, to_single
from services.searcher.embedded.index.columns import Columns, Mask, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import SavedIndex
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import answer_grouped, nearest_of
from services.searcher.embedded.index.segment_files import Arrays, SegmentFiles, StoredVectors
from services.searcher.embedded.index.segments import IndexSegment, Neighbors, SegmentQuery
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


_VECTOR_BYTES, _LIST_BYTES = 2, 2  # of each component, in the vectors; in the lists and what goes with them
_MOST_FILES = 8
_TRAIN_PER_LIST = 40
_SPARE = 8
_BROAD = 3  # of at least one row in so many that passes, a scan does not look up which do
_MORE = 1.25  # candidates, in addition, in case that fewer of the nearest pass than of all
# What a filtered search costs, measured on 256-d rows with a different query each time: nothing is cached.
# The unit is the time that a scan takes for a row that passes (150 ns), most of it waiting for memory.
_GATHER = 1.05  # to copy a stored vector and to score it
_CHECKS = 57.0  # rows that a scan passes over in this time, as they do not pass
_BEGIN = 1000.0  # to begin a scan, and to score its candidates again
# So few rows are scored whatever a scan costs. Where fewer of them than the hits wanted lie near a query, the
# others are in lists anywhere: of a million rows in 2000 clusters, scans found .76 with 1 %, .95 with 2 %.
_EXACT_ROWS = 32_768
_EXACT_PART = 48  # and no more than one in so many
_MOST_GROWTH = 2  # of the number of lists that fits the rows, until they are trained again


class DeviceCopy(Protocol):
    """A segment on a device, which searches all rows: it knows no selectors.

    Attributes:
        kind: Name of the index, for statistics.
        adjustable: Whether tuning may change how far it looks, or take another in its place.
    """

    kind: str
    adjustable: bool

    def search(self, queries: Vectors, count: int, nprobe: int, further: float) -> Positions | None:
        """Rows that are likely to be the best `count` of each query, best first; -1 stands for none.

        Args:
            queries: Shape (queries, dimension).
            count: How many rows for each.
            nprobe: Lists to visit, where it has lists.
            further: How many times as far as it was tuned to it looks, where it has none.

        Returns:
            Shape (queries, count); None where it cannot look so far.
        """


class IvfSegment(ApproximateSegment):
    """Inverted lists of 8-bit codes; the effort is nprobe, the number of lists that a search visits.

    Args:
        columns: The rows' columns.
        vectors: Shape (rows, dimension).
        index: A trained and filled IVF index; ids are row numbers.
        files: Where it is stored.

    Attributes:
        device: Answers in place of the lists what needs no selector.
    """

    kind = "ivf"

    def __init__(self, columns: Columns, vectors: StoredVectors, index: Any, files: SegmentFiles) -> None:
        super().__init__(columns, vectors, files, most_effort=int(index.nlist))
        self.index = index
        self.device: DeviceCopy | None = None

    @property
    def may_improve(self) -> bool:
        """See `ApproximateSegment`."""
        return super().may_improve or (self.device is not None and self.device.adjustable)

    def candidates(self, queries: Vectors, request: SegmentQuery, count: int) -> Positions | None:
        """See `ApproximateSegment.candidates`."""
        nprobe = self._nprobe(request)
        asked = min(request.matching, count + count // 2 + _SPARE)  # codes are coarse: some change places
        mask = self.passing(request)
        selection = {} if mask is None else {"sel": selector(mask)}

        def scan(queries: Vectors, nprobe: int) -> Positions:
            return self._scan(queries, asked, nprobe=nprobe, **selection)

        def scan_all(count: int) -> Positions:
            further = request.effort * self.columns.used / request.matching
            device = self.device
            rows = None if device is None else device.search(queries, count, nprobe, further)
            return self._scan(queries, count, nprobe=nprobe) if rows is None else rows

        if mask is None:
            rows = scan_all(asked)
        elif request.matching * _BROAD < self.columns.used:
            rows = scan(queries, nprobe)
        else:  # nearly all pass: looking each of them up costs more than to drop the others afterwards
            wider = int(asked * _MORE * self.columns.used / request.matching) + _SPARE
            rows = _first_passing(scan_all(wider), mask, asked)
            few = (rows < 0).any(axis=1)
            if few.any():
                rows[few] = scan(queries[few], nprobe)
        short = (rows < 0).any(axis=1)
        if short.any() and nprobe < self.index.nlist:
            rows[short] = scan(queries[short], self.index.nlist)
        return rows

    def _scan(self, queries: Vectors, count: int, **parameters: Any) -> Positions:
        """Rows by the scores of their codes, best first; -1 where the lists hold fewer."""
        how = faiss.SearchParametersIVF(**parameters)
        rows: Positions = self.index.search(np.ascontiguousarray(queries), count, params=how)[1]
        return rows

    def _is_gathered(self, request: SegmentQuery) -> bool:
        if request.matching * _BROAD >= self.columns.used:
            return request.matching <= _GATHER_ROWS
        share = self._nprobe(request) / int(self.index.nlist)
        scan = share * (self.columns.used / _CHECKS + request.matching) + _BEGIN
        few = min(_EXACT_ROWS, self.columns.used // _EXACT_PART)
        return request.matching <= few or request.matching * _GATHER <= scan

    def _nprobe(self, request: SegmentQuery) -> int:
        # The best rows that pass a filter are further away, so more lists are needed. With the root of how
        # many times fewer rows pass, recall was measured to be as good as without a filter.
        wanted = self.effort * request.effort * np.sqrt(self.columns.used / request.matching)
        return int(min(self.index.nlist, np.ceil(wanted)))

    def list_ids(self) -> NDArray[np.int64]:
        """The list of each row."""
        lists, found = self.index.invlists, np.empty(self.columns.used, np.int64)
        for number in range(self.index.nlist):
            if size := lists.list_size(number):
                found[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
        return found

    @property
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`; the centroids."""
        return 4 * int(self.index.nlist * self.index.d)


def _first_passing(rows: Positions, mask: Mask, count: int) -> Positions:
    """The first `count` rows of each query that are in the mask, and -1 where there are fewer."""
    passing = mask[rows] & (rows >= 0)
    order = np.argsort(~passing, axis=1, kind="stable")[:, :count]
    found: Positions = np.take_along_axis(np.where(passing, rows, -1), order, axis=1)
    return found


def _empty_index(quantizer: Any, lists: int) -> Any:
    return faiss.IndexIVFScalarQuantizer(
        quantizer, quantizer.d, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )


def restore_ivf(saved: SavedIndex, columns: Columns) -> IvfSegment:
    """The segment that was saved.

    Raises:
        KeyError: Something else was.
        ValueError: Its files do not fit its rows.
    """
    index = saved.files.lists()
    if index.ntotal != columns.used:
        raise ValueError("its lists are of other rows")
    segment = IvfSegment(columns, saved.files.vectors(columns.used, index.d), index, saved.files)
    segment.restore(saved.arrays)
    return segment


def build_ivf(compaction: CompactionInput, files: SegmentFiles | None = None) -> IvfSegment:
    """Trains and fills an IVF index, which is then to be tuned.

    The lists of a segment that is merged with smaller ones are kept, unless there are too few for all rows.

    Args:
        compaction: The rows.
        files: Where it is stored; None takes a temporary folder.

    Raises:
        OSError: The disk refuses it.
    """
    files, dimension = files or SegmentFiles(), compaction.dimension
    vectors = store_vectors(compaction, files)
    lists = int(2 ** np.round(np.log2(max(1.0, 2.0 * np.sqrt(len(compaction))))))
    merged = [source for source in compaction.sources if isinstance(source, IvfSegment)]
    kept = max(merged, key=lambda source: source.index.nlist, default=None)
    if kept is not None and kept.index.nlist * _MOST_GROWTH < lists:
        kept = None
    list_ids = np.full(len(compaction), -1)
    if kept is None:
        index = _empty_index(faiss.IndexFlatIP(dimension), lists)
        index.cp.min_points_per_centroid = 1
        index.cp.spherical = True
        index.train(compaction.sample(lists * _TRAIN_PER_LIST))
    else:
        index = _empty_index(faiss.clone_index(kept.index.quantizer), kept.index.nlist)
        index.sq, index.is_trained = kept.index.sq, True
        first, rows = compaction.taken_from(kept)
        list_ids[first : first + len(rows)] = kept.list_ids()[rows]
    for start in range(0, len(vectors), _BLOCK):
        stop = min(start + _BLOCK, len(vectors))
        block, lists_of = to_single(vectors[np.arange(start, stop)]), list_ids[start:stop]
        new = lists_of < 0
        if new.any():
            lists_of[new] = index.quantizer.assign(block[new], 1)[:, 0]
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(lists_of))
    return IvfSegment(compaction.columns(), vectors, files.write_lists(index), files)
