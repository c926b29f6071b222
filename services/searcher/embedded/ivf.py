"""Approximate search in a sealed segment: inverted lists of half-precision vectors (FAISS IVF, SQfp16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.searcher.embedded.cache import Arrays
from services.searcher.embedded.measuring import Examination
from services.searcher.embedded.native import faiss, selector
from services.searcher.embedded.rewriting import ALL_ROWS, Rewrite
from services.searcher.embedded.segments import (
    Columns,
    Found,
    Mask,
    Positions,
    Probe,
    answer_grouped,
)
from services.searcher.types import Vectors

_TRAIN_PER_LIST = 40


class IvfSegment:
    """Vectors in inverted lists. Codes are the stored half-precision vectors themselves, so scores are exact.

    Args:
        columns: The rows' columns.
        index: A trained and filled IVF index with a direct map; ids are row numbers.
        probes: Lists that a search looks into.

    Attributes:
        tuned: Whether real queries have chosen `probes`, not rows with noise.
    """

    kind = "ivf"
    sealed = True

    def __init__(self, columns: Columns, index: Any, probes: int = 1) -> None:
        self.columns = columns
        self.index = index
        self.probes = probes
        self.recall: float | None = None
        self.tuned = False

    def gather(self, rows: Positions) -> Vectors:
        """See `Segment.gather`."""
        vectors: Vectors = self.index.reconstruct_batch(rows.astype(np.int64))
        return vectors

    def nearest(self, probes: Sequence[Probe]) -> list[list[Found]]:
        """See `Segment.nearest`; approximate, but filters hold and pages are filled."""
        return answer_grouped(probes, self.gather, self._search)

    def _search(self, queries: Vectors, probe: Probe, count: int) -> list[Found]:
        mask = probe.mask
        if probe.rows < self.columns.used:
            mask = np.zeros(self.columns.used, np.bool_)
            mask[: probe.rows] = True if probe.mask is None else probe.mask
        # A filter thins the lists out, so more of them are needed for as many good rows.
        lists = min(self.index.nlist, -(-self.probes * self.columns.used // probe.matching))
        scores, rows = self._scan(queries, count, mask, lists)
        short = (rows < 0).any(axis=1)
        if short.any():
            scores[short], rows[short] = self._scan(queries[short], count, mask, self.index.nlist)
        return [(row[row >= 0], score[row >= 0]) for row, score in zip(rows, scores, strict=True)]

    def _scan(self, queries: Vectors, count: int, mask: Mask | None, lists: int) -> tuple[Vectors, Positions]:
        chosen = {} if mask is None else {"sel": selector(mask)}
        parameters = faiss.SearchParametersIVF(nprobe=lists, **chosen)
        scores, rows = self.index.search(np.ascontiguousarray(queries), count, params=parameters)
        return scores, rows

    def tune(self, recall_target: float, queries: Vectors | None = None) -> None:
        """Looks from now on into the fewest lists that reach a recall; searches may go on meanwhile.

        Args:
            recall_target: Least recall@10 against exact search over these rows.
            queries: Real queries; without them, rows with noise.
        """
        examination = Examination(Rewrite([self], ALL_ROWS), queries)
        trial = IvfSegment(self.columns, self.index)
        trial.recall = examination.recall(trial)
        while not good_enough(trial, recall_target):
            trial.probes = min(self.index.nlist, 2 * trial.probes)
            trial.recall = examination.recall(trial)
        self.probes, self.recall, self.tuned = trial.probes, trial.recall, queries is not None

    @property
    def vector_bytes(self) -> int:
        """See `Segment.vector_bytes`."""
        return self.columns.used * (2 * int(self.index.d) + 16)  # code, id, direct map

    def to_arrays(self) -> Arrays:
        """What `restore_ivf` needs besides the rows: the centroids, and in which list each row lies."""
        homes = faiss.vector_to_array(self.index.direct_map.array) >> 32  # list number, then offset
        return {
            "centroids": self.index.quantizer.reconstruct_n(0, self.index.nlist),
            "homes": homes.astype(np.int32),
            "probes": np.int64(self.probes),
            "recall": np.float64(self.recall),
            "tuned": np.bool_(self.tuned),
        }


def restore_ivf(rewrite: Rewrite, rows: Positions, arrays: Arrays) -> IvfSegment:
    """The segment that `to_arrays` has described, filled without training and without looking for lists.

    Args:
        rewrite: The rows.
        rows: Which of the described rows they are.
        arrays: What `to_arrays` returned.

    Raises:
        KeyError: `arrays` is something else.
        ValueError: `arrays` is of vectors of another length.
    """
    centroids, homes = arrays["centroids"], arrays["homes"][rows].astype(np.int64)
    if centroids.shape[1] != rewrite.sample(1).shape[1] or not (homes < len(centroids)).all():
        raise ValueError("it is of another collection")
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(centroids)
    index = _empty_index(quantizer, len(centroids))
    index.is_trained = True
    start = 0
    for block in rewrite.vectors():
        here = homes[start : start + len(block)]
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(here))
        start += len(block)
    index.make_direct_map()
    segment = IvfSegment(rewrite.columns(), index, int(arrays["probes"]))
    segment.recall = float(arrays["recall"])
    segment.tuned = bool(arrays.get("tuned", False))  # older files do not say
    return segment


def good_enough(segment: IvfSegment, recall_target: float) -> bool:
    """Whether it finds as much as is asked for, or as much as it can."""
    return (segment.recall or 0.0) >= recall_target or segment.probes >= segment.index.nlist


def _empty_index(quantizer: Any, lists: int) -> Any:
    return faiss.IndexIVFScalarQuantizer(
        quantizer, quantizer.d, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )


def build_ivf(rewrite: Rewrite, recall_target: float, queries: Vectors | None = None) -> IvfSegment:
    """Trains, fills and tunes an IVF index.

    Args:
        rewrite: The rows.
        recall_target: See `IvfSegment.tune`.
        queries: See `IvfSegment.tune`.
    """
    sample = rewrite.sample(1)
    dimension = sample.shape[1]
    lists = int(2 ** np.round(np.log2(max(1.0, 2.0 * np.sqrt(len(rewrite))))))
    sample = rewrite.sample(lists * _TRAIN_PER_LIST)
    quantizer = faiss.IndexFlatIP(dimension)
    index = _empty_index(quantizer, lists)
    index.cp.min_points_per_centroid = 1
    index.cp.spherical = True
    index.train(sample)
    for block in rewrite.vectors():
        index.add(block)
    index.make_direct_map()
    segment = IvfSegment(rewrite.columns(), index)
    segment.tune(recall_target, queries)
    return segment
