"""Inverted lists of 8-bit codes (FAISS IVF, SQ8), which are mapped, and when a filtered search scans them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.faiss_compat import faiss, selector, to_single
from services.searcher.embedded.index.approximate import ApproximateSegment, store_vectors
from services.searcher.embedded.index.columns import Columns, Mask, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import SavedIndex
from services.searcher.embedded.index.segment_files import SegmentFiles, StoredVectors
from services.searcher.embedded.index.segments import SegmentQuery
from services.searcher.types import Vectors

_BLOCK = 8192
_TRAIN_PER_LIST = 40
_MOST_GROWTH = 2  # of the number of lists that fits the rows, until they are trained again
_SPARE = 8
_BROAD = 3  # of at least one row in so many that passes, a scan does not look up which do
_MORE = 1.25  # candidates, in addition, in case that fewer of the nearest pass than of all
_BROAD_ROWS = 1000  # of so few that nearly all pass, none is left out
# What a filtered search costs, measured on 256-d rows with a different query each time: nothing is cached.
# The unit is the time that a scan takes for a row that passes (150 ns), most of it waiting for memory.
_GATHER = 1.05  # to copy a stored vector and to score it
_CHECKS = 57.0  # rows that a scan passes over in this time, as they do not pass
_BEGIN = 1000.0  # to begin a scan, and to score its candidates again
# So few rows are scored whatever a scan costs. Where fewer of them than the hits wanted lie near a query, the
# others are in lists anywhere: of a million rows in 2000 clusters, scans found .76 with 1 %, .95 with 2 %.
_EXACT_ROWS = 32_768
_EXACT_PART = 48  # and no more than one in so many


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
            return request.matching <= _BROAD_ROWS
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
