"""Candidates of a ranking: records with their scores, and who supplies them. The same for every engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.types import Vectors

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Records with their scores, in any order.

    They hold the best `count` records that were requested, in the order of hits, each scored with its best
    query vector, and perhaps further ones. What is missing comes behind all of the best `count`.

    Attributes:
        key: The engine's own numbers of the records, shape (rows,).
        image: The engine's own numbers of their images, shape (rows,).
        level: Levels, shape (rows,).
        scores: Cosines with the query vectors, then with the negatives, shape (rows, queries + negatives).
        complete: Whether nothing that passes the filter is missing.
        by_image: Whether `count` counts images; then an image's best records stand for it.
    """

    key: Numbers
    image: Numbers
    level: NDArray[np.uint8]
    scores: Vectors
    complete: bool
    by_image: bool = False


class CandidateSource(Protocol):
    """Supplies a ranking with candidates: the records of one state that pass one filter.

    Attributes:
        ahead: How many of the best records lie before the query's `after`: requested, but not shown.
    """

    ahead: int

    def best(self, count: int) -> Candidates:
        """The best `count` records, or images where the candidates say `by_image`."""

    def of_images(self, images: Numbers) -> Candidates:
        """The records of the images; where the query has no negatives, those that are the best of their
        image and level suffice.
        """

    def vectors(self, keys: Sequence[int]) -> Vectors:
        """The stored vectors of records, in their order, shape (keys, dimension)."""

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Image id and record id by key."""


def cosines(vectors: NDArray[np.floating], queries: Vectors) -> Vectors:
    """Cosines that do not depend on what else is computed along with them, shape (vectors, queries).

    Products of a half and a single are exact in double precision and so, within 1e-14, are their sums;
    rounding to single precision hides the order of summation. Vectors of any length are allowed: those
    rounded to half precision are not quite of length one.
    """
    wide, against = vectors.astype(np.float64), queries.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, np.newaxis]
    lengths = lengths * np.sqrt(np.einsum("ij,ij->i", against, against))
    return np.asarray(np.clip(wide @ against.T / lengths, -1.0, 1.0).astype(np.float32))
