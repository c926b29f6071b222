"""A sample of the queries that a collection receives, by kind, to tune and evaluate its indexes with."""

from __future__ import annotations

import enum
import random
import threading
from collections import deque

import numpy as np

from services.searcher.types import Vectors

KEPT = 256
_WINDOW = 16 * KEPT
_FRESH = 64
_NEAR = 0.6


class QueryKind(enum.Enum):
    """Kinds of query, which differ in how near their best records are."""

    REGION = "region"
    WORD = "word"

    @classmethod
    def of(cls, best_score: float) -> QueryKind:
        """The kind of a query whose best record has this score."""
        return cls.REGION if best_score >= _NEAR else cls.WORD


class LiveQueries:
    """Keeps some of the last thousands of queries of each kind. Safe to use from several threads.

    Many queries of one kind do not evict the few of the other, and a query that is repeated counts once.
    """

    def __init__(self) -> None:
        self._kept: dict[QueryKind, dict[bytes, Vectors]] = {kind: {} for kind in QueryKind}
        self._fresh: dict[QueryKind, deque[Vectors]] = {kind: deque(maxlen=_FRESH) for kind in QueryKind}
        self._noted = dict.fromkeys(QueryKind, 0)
        self._lock = threading.Lock()
        self._random = random.Random(20_111)

    def note(self, vectors: Vectors, best: Vectors) -> None:
        """Takes query vectors, shape (queries, dimension), and the scores of their best records."""
        for vector, score in zip(vectors, best.tolist(), strict=True):
            kind = QueryKind.of(score)
            with self._lock:
                self._noted[kind] = min(_WINDOW, self._noted[kind] + 1)
                chance = KEPT / self._noted[kind]
                if chance < 1.0 and self._random.random() >= chance:
                    continue
                kept, name = self._kept[kind], vector.tobytes()
                if name in kept:
                    continue
                if len(kept) >= KEPT:
                    del kept[self._random.choice(list(kept))]
                kept[name] = vector.copy()
                self._fresh[kind].append(kept[name])

    def sample(self, kind: QueryKind, most: int) -> Vectors:
        """Up to `most` different queries of a kind, shape (queries, dimension)."""
        with self._lock:
            kept = list(self._kept[kind].values())
            chosen = self._random.sample(kept, min(most, len(kept)))
        return np.stack(chosen) if chosen else np.empty((0, 0), np.float32)

    def count(self, kind: QueryKind) -> int:
        """Different queries of a kind that are kept."""
        return len(self._kept[kind])

    def fresh(self, kind: QueryKind, least: int) -> Vectors | None:
        """Queries that came since they were taken last; None while there are fewer than `least`."""
        with self._lock:
            if len(self._fresh[kind]) < least:
                return None
            taken = np.stack(list(self._fresh[kind]))
            self._fresh[kind].clear()
        return taken
