"""Hits that are not all alike: near duplicates folded into the best of them, and hits mixed (MMR).

Both are made over the best `DIVERSE_AMONG` hits of a search. A later page finds these again, in the state and
exactly, and continues from the hits that earlier pages have shown, which its token names: whatever is like
one of those was folded into it. So no page repeats what another has shown, nor shows its duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from services.searcher.candidates import CandidateSource
from services.searcher.queries import Query
from services.searcher.ranking import Ranked, rank
from services.searcher.types import Vectors

DIVERSE_AMONG = 2048
"""Best hits that are looked at. Their cosines with each other fit into 16 MiB and take some milliseconds."""


def diverse(query: Query) -> bool:
    """Whether a query wants its hits folded or mixed."""
    return query.fold_similarity is not None or query.diversity > 0.0


def widened(query: Query) -> Query:
    """The query whose hits are looked at: the query itself unless it wants them folded or mixed."""
    if not diverse(query):
        return query
    effort = query.effort if query.after is None else np.inf  # as on every later page
    return replace(query, limit=DIVERSE_AMONG, after=None, skipped=0, shown=(), effort=effort)


def rank_diverse(query: Query, source: CandidateSource) -> tuple[list[Ranked], bool]:
    """As `rank`, folded and mixed as the query wants it; `source` is of the widened query."""
    if not diverse(query):
        return rank(query, source)
    shown = frozenset(query.shown)
    hits = [hit for hit in rank(widened(query), source)[0] if hit.key not in shown]
    vectors = _unit(source.vectors([*query.shown, *(hit.key for hit in hits)]))
    alike = vectors @ vectors.T
    first = len(shown)
    kept, folded = _fold(alike, first, query.fold_similarity)
    # An engine whose keys do not outlive a search makes the pages before this one again.
    skipped = 0 if query.shown else query.skipped
    scores = np.array([hit.position.score for hit in hits], np.float32)
    order = _mix(alike, scores, kept, first, query.diversity, skipped + query.limit + 1)[skipped:]
    chosen = [replace(hits[row - first], folded=folded[row]) for row in order[: query.limit]]
    return chosen, len(order) > query.limit


def _fold(alike: Vectors, first: int, similarity: float | None) -> tuple[list[int], dict[int, int]]:
    """Rows that stay, and how many others were folded into each; the rows before `first` stay in any case."""
    if similarity is None:
        kept = list(range(first, len(alike)))
        return kept, dict.fromkeys(kept, 0)
    least = similarity - 1e-6  # of rounding: what is equal is alike
    free = np.ones(len(alike), np.bool_)
    for row in range(first):
        free &= alike[row] < least
    folded: dict[int, int] = {}
    for row in range(first, len(alike)):
        if free[row]:
            group = free & (alike[row] >= least)
            group[row] = True
            folded[row] = int(np.count_nonzero(group)) - 1
            free[group] = False
    return list(folded), folded


def _mix(
    alike: Vectors, scores: Vectors, rows: Sequence[int], first: int, diversity: float, count: int
) -> list[int]:
    """The first `count` of the rows, which come by score, in the order of maximal marginal relevance."""
    if diversity == 0.0:
        return list(rows[:count])
    left = np.array(rows, np.intp)
    worth = (1.0 - diversity) * scores[left - first]
    nearest = np.max(alike[:first][:, left], axis=0, initial=-1.0)
    chosen: list[int] = []
    while len(left) and len(chosen) < count:
        begun = first > 0 or chosen
        best = int(np.argmax(worth - diversity * nearest if begun else worth))
        chosen.append(int(left[best]))
        left, worth, nearest = (np.delete(values, best) for values in (left, worth, nearest))
        nearest = np.maximum(nearest, alike[chosen[-1], left])
    return chosen


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
