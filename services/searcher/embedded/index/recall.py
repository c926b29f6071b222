"""Recall of approximate segments against exact search, and how far they have to look to reach a target.

There are two kinds of query. Regions and images are like stored rows and find their neighbours in few places;
words are far from all rows, and their neighbours are scattered. An index tuned to one kind fails the other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from services.searcher.embedded.faiss_compat import product
from services.searcher.embedded.index.approximate import ApproximateSegment
from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.nearest import rounding
from services.searcher.embedded.index.segments import IndexSegment, SegmentQuery
from services.searcher.types import Vectors

RECALL_AT = 10
QUERIES = 128
_NOISE = 0.75
_BLEND = 3
_APART = 1.6


class RecallEvaluator:
    """Queries and their true answers, with which one segment is evaluated at one effort after another.

    Args:
        compaction: The rows, all rows of the segment.
        queries: Unit vectors, shape (queries, dimension).
    """

    def __init__(self, compaction: CompactionInput, queries: Vectors) -> None:
        self._queries = queries
        self._rows = len(compaction)
        self._wanted = min(RECALL_AT, self._rows)
        self._worst = _worst_scores(compaction, queries, self._wanted)

    def recall(self, segment: IndexSegment) -> float:
        """recall@10: the share of the true ten best that the segment returns; ties are equally good."""
        request = SegmentQuery(self._queries, self._rows, None, self._rows, self._wanted)
        found = segment.nearest([request])[0]
        hits = 0
        for worst, (_, scores) in zip(self._worst, found, strict=True):
            good = int(np.count_nonzero(scores >= worst - 2 * rounding(self._queries.shape[1])))
            hits += min(good, self._wanted)
        return hits / max(1, self._wanted * len(self._queries))


def recall_evaluators(
    compaction: CompactionInput, real: Mapping[QueryKind, Vectors]
) -> dict[QueryKind, RecallEvaluator]:
    """One evaluator for each kind of query, with synthetic queries for kinds that have no real ones yet."""
    return {
        kind: RecallEvaluator(compaction, real[kind] if kind in real else synthetic_queries(compaction, kind))
        for kind in QueryKind
    }


S = TypeVar("S", bound=ApproximateSegment)


def tune(
    segment: ApproximateSegment, recall_evaluators: Mapping[QueryKind, RecallEvaluator], target: float
) -> None:
    """Tunes a segment to look as far as the worse kind of query needs; searches may run at the same time.

    Args:
        segment: The segment.
        recall_evaluators: An evaluator for each kind of query.
        target: Least recall of each of them. Where it cannot be reached, the segment scans all rows.
    """
    effort = 1
    recalls: dict[QueryKind, float] = {}
    while True:
        trial = with_effort(segment, effort)
        for kind, evaluator in recall_evaluators.items():
            recalls[kind] = evaluator.recall(trial)
            if recalls[kind] < target and effort < segment.most_effort:
                break
        else:
            break
        effort = min(segment.most_effort, max(effort + 1, 3 * effort // 2))
    segment.effort, segment.recalls = effort, recalls


def with_effort(segment: S, effort: int) -> S:
    """The same segment, but for how far it looks."""
    trial = copy.copy(segment)
    trial.effort = effort
    return trial


def below_target(segment: ApproximateSegment, target: float) -> bool:
    """Whether a segment could reach the target, but is not known to."""
    unknown = len(segment.recalls) < len(QueryKind)
    return unknown or (min(segment.recalls.values()) < target and segment.may_improve)


def synthetic_queries(compaction: CompactionInput, kind: QueryKind) -> Vectors:
    """Queries made of the rows, to tune with until there are enough real ones of a kind.

    Regions are rows with noise, at a cosine of about 0.8. Words are blends of a few rows that lean far out
    of the space that the rows fill; their best rows are at a cosine of about 0.4, hardly better than others.
    """
    rng = np.random.default_rng(2)
    if kind is QueryKind.REGION:
        return noisy(compaction.sample(QUERIES, seed=1))
    rows = compaction.sample(QUERIES * _BLEND, seed=3)
    blends = rows[rng.integers(0, len(rows), (QUERIES, _BLEND))].sum(axis=1)
    blends /= np.linalg.norm(blends, axis=1, keepdims=True) + 1e-12
    apart = rng.standard_normal(blends.shape).astype(np.float32)
    apart *= _APART / np.linalg.norm(apart, axis=1, keepdims=True)
    return _unit(blends + apart)


def noisy(vectors: Vectors, seed: int = 2) -> Vectors:
    """Unit vectors at a cosine of about 0.8: synthetic queries, which are not stored rows."""
    noise = np.random.default_rng(seed).standard_normal(vectors.shape).astype(np.float32)
    return _unit(vectors + _NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True))


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _worst_scores(compaction: CompactionInput, queries: Vectors, count: int) -> Vectors:
    """The score of the `count`-th best row of each query, shape (queries,)."""
    scale = compaction.columns().scale
    kept = np.empty((len(queries), 0), np.float32)
    passed = 0
    for block in compaction.vectors():
        scores = product(queries, block) * scale[passed : passed + len(block)]
        passed += len(block)
        kept = np.hstack([kept, scores])
        if kept.shape[1] > count:
            kept = np.partition(kept, kept.shape[1] - count, axis=1)[:, -count:]
    return kept.min(axis=1) if kept.shape[1] else np.full(len(queries), -np.inf, np.float32)
