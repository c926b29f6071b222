"""Approximate search in a sealed segment: inverted lists of half-precision vectors (FAISS IVF, SQfp16)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.faiss_compat import faiss, selector, to_single
from services.searcher.embedded.index.columns import Columns, Mask, Positions
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import Arrays
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import answer_grouped
from services.searcher.embedded.index.recall import worst
from services.searcher.embedded.index.segments import Neighbors, SegmentQuery
from services.searcher.types import Vectors

_TRAIN_PER_LIST = 40
_GATHER_ROWS = 1000
_RECONSTRUCT_ROWS = 64
_SPARE = 8


class IvfSegment:
    """Inverted lists of the stored half-precision vectors themselves, so scores are exact.

    Args:
        columns: The rows' columns.
        index: A trained and filled IVF index with a direct map; ids are row numbers.
        effort: nprobe, the lists that a search visits.

    Attributes:
        effort: See `Approximate`; nprobe.
        most_effort: See `Approximate`.
        recalls: See `Approximate`.
        seen: See `Approximate`.
    """

    kind = "ivf"
    sealed = True
    approximate = True

    def __init__(self, columns: Columns, index: Any, effort: int = 1) -> None:
        self.columns = columns
        self.index = index
        self.effort = effort
        self.most_effort = int(index.nlist)
        self.recalls: dict[QueryKind, float] = {}
        self.seen: set[QueryKind] = set()

    @property
    def recall(self) -> float | None:
        """See `IndexSegment`."""
        return worst(self.recalls)

    def gather(self, rows: Positions) -> Vectors:
        """See `IndexSegment.gather`."""
        if len(rows) <= _RECONSTRUCT_ROWS:
            vectors: Vectors = self.index.reconstruct_batch(rows.astype(np.int64))
            return vectors
        places = self._places[rows]
        order = np.argsort(places, kind="stable")
        lists, offsets = places[order] >> 32, places[order] & 0xFFFFFFFF
        starts = np.flatnonzero(np.diff(lists, prepend=-1))
        codes = np.empty((len(rows), self.index.d), np.float16)
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
            codes[order[start:stop]] = self._codes[lists[start]][offsets[start:stop]]
        return to_single(codes)

    def nearest(self, requests: Sequence[SegmentQuery]) -> list[list[Neighbors]]:
        """See `IndexSegment.nearest`; approximate unless asked otherwise. Filters hold, pages are filled."""
        return answer_grouped(requests, self, _GATHER_ROWS, self._search)

    def _search(self, queries: Vectors, request: SegmentQuery, count: int) -> list[Neighbors]:
        mask = request.mask
        if request.rows < self.columns.used:
            mask = np.zeros(self.columns.used, np.bool_)
            mask[: request.rows] = True if request.mask is None else request.mask
        # A filter thins the lists out, so more of them are needed for as many good rows.
        wanted = self.effort * request.effort * self.columns.used / request.matching
        nprobe = int(min(self.index.nlist, np.ceil(wanted)))
        # FAISS takes the vectors for unit vectors, which they are not quite: the last rows may change places.
        asked = min(request.matching, count + _SPARE)
        scores, rows = self._scan(queries, asked, mask, nprobe)
        short = (rows < 0).any(axis=1)
        if short.any():
            scores[short], rows[short] = self._scan(queries[short], asked, mask, self.index.nlist)
        scores *= self.columns.scale[rows]
        return [(row[row >= 0], score[row >= 0]) for row, score in zip(rows, scores, strict=True)]

    def _scan(
        self, queries: Vectors, count: int, mask: Mask | None, nprobe: int
    ) -> tuple[Vectors, Positions]:
        chosen = {} if mask is None else {"sel": selector(mask)}
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, **chosen)
        scores, rows = self.index.search(np.ascontiguousarray(queries), count, params=parameters)
        return scores, rows

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """List (upper half) and place in it of each row."""
        array = self.index.direct_map.array
        places: NDArray[np.int64] = faiss.rev_swig_ptr(array.data(), array.size())
        return places

    @cached_property
    def _codes(self) -> list[NDArray[np.float16]]:
        """The vectors of each list, in FAISS's own memory; a sealed index never moves it."""
        lists, dimension = self.index.invlists, int(self.index.d)
        sizes = [lists.list_size(number) for number in range(self.index.nlist)]
        return [
            faiss.rev_swig_ptr(lists.get_codes(number), 2 * size * dimension)
            .view(np.float16)
            .reshape(size, dimension)
            if size
            else np.empty((0, dimension), np.float16)
            for number, size in enumerate(sizes)
        ]

    @property
    def vector_bytes(self) -> int:
        """See `IndexSegment.vector_bytes`."""
        return self.columns.used * (2 * int(self.index.d) + 16)  # code, id, direct map

    def to_arrays(self) -> Arrays:
        """What `restore_ivf` needs in addition to the rows: the centroids, and each row's list."""
        return {
            "centroids": self.index.quantizer.reconstruct_n(0, self.index.nlist),
            "list_ids": (self._places >> 32).astype(np.int32),
            "nprobe": np.int64(self.effort),
            **{f"recall_{kind.value}": np.float64(recall) for kind, recall in self.recalls.items()},
        }


def restore_ivf(compaction: CompactionInput, rows: Positions, arrays: Arrays) -> IvfSegment:
    """The segment that `to_arrays` has described, filled without training and without looking for lists.

    Args:
        compaction: The rows.
        rows: Which of the described rows they are.
        arrays: What `to_arrays` returned.

    Raises:
        KeyError: `arrays` is something else.
        ValueError: `arrays` is of vectors of another length.
    """
    centroids, list_ids = arrays["centroids"], arrays["list_ids"][rows].astype(np.int64)
    if centroids.shape[1] != compaction.sample(1).shape[1] or not (list_ids < len(centroids)).all():
        raise ValueError("it is of another collection")
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(centroids)
    index = _empty_index(quantizer, len(centroids))
    index.is_trained = True
    start = 0
    for block in compaction.vectors():
        here = list_ids[start : start + len(block)]
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(here))
        start += len(block)
    index.make_direct_map()
    segment = IvfSegment(compaction.columns(), index, int(arrays["nprobe"]))
    segment.recalls = saved_recalls(arrays)
    return segment


def saved_recalls(arrays: Arrays) -> dict[QueryKind, float]:
    """The recall by kind of query that an index file has saved; older files have none."""
    names = {kind: f"recall_{kind.value}" for kind in QueryKind}
    return {kind: float(arrays[name]) for kind, name in names.items() if name in arrays}


def _empty_index(quantizer: Any, lists: int) -> Any:
    return faiss.IndexIVFScalarQuantizer(
        quantizer, quantizer.d, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )


def build_ivf(compaction: CompactionInput) -> IvfSegment:
    """Trains and fills an IVF index, which is then to be tuned."""
    sample = compaction.sample(1)
    dimension = sample.shape[1]
    lists = int(2 ** np.round(np.log2(max(1.0, 2.0 * np.sqrt(len(compaction))))))
    sample = compaction.sample(lists * _TRAIN_PER_LIST)
    quantizer = faiss.IndexFlatIP(dimension)
    index = _empty_index(quantizer, lists)
    index.cp.min_points_per_centroid = 1
    index.cp.spherical = True
    index.train(sample)
    for block in compaction.vectors():
        index.add(block)
    index.make_direct_map()
    return IvfSegment(compaction.columns(), index)
