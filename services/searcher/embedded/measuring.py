"""How well an approximate index finds: recall against exact search over the same rows."""

from __future__ import annotations

import numpy as np

from services.searcher.embedded.rewriting import Rewrite
from services.searcher.embedded.segments import Positions, Probe, Segment, product
from services.searcher.types import Vectors

_RECALL_AT = 10
_QUERIES = 128


class Examination:
    """Queries and their true answers, to examine one segment with after another.

    Args:
        rewrite: The rows.
        queries: Real queries; without them, rows with noise, since a query is hardly ever a stored row.
    """

    def __init__(self, rewrite: Rewrite, queries: Vectors | None = None) -> None:
        self._queries = noisy(rewrite.sample(_QUERIES, seed=1)) if queries is None else queries
        self._rows = len(rewrite)
        self._truth = exact_rows(rewrite, self._queries, min(_RECALL_AT, len(rewrite)))

    def recall(self, segment: Segment) -> float:
        """Part of the true best ten rows that the segment finds when it is asked for ten."""
        probe = Probe(self._queries, self._rows, None, self._rows, self._truth.shape[1])
        found = segment.nearest([probe])[0]
        hits = 0
        for truth, (rows, scores) in zip(self._truth, found, strict=True):
            first = rows[np.argsort(-scores, kind="stable")[: len(truth)]]
            hits += len(np.intersect1d(truth, first))
        return hits / max(1, self._truth.size)


def noisy(vectors: Vectors, seed: int = 2) -> Vectors:
    """Unit vectors at a cosine of about 0.8: stand-ins for queries, which are no stored rows."""
    noise = np.random.default_rng(seed).standard_normal(vectors.shape).astype(np.float32)
    moved = vectors + 0.75 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    unit: Vectors = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return unit


def exact_rows(rewrite: Rewrite, queries: Vectors, count: int) -> Positions:
    """The true best rows of each query, shape (queries, count)."""
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.intp)
    passed = 0
    for block in rewrite.vectors():
        here = np.broadcast_to(np.arange(passed, passed + len(block)), (len(queries), len(block)))
        scores, rows = np.hstack([scores, product(queries, block)]), np.hstack([rows, here])
        if scores.shape[1] > count:
            kept = np.argpartition(scores, -count, axis=1)[:, -count:]
            scores, rows = np.take_along_axis(scores, kept, 1), np.take_along_axis(rows, kept, 1)
        passed += len(block)
    return rows
