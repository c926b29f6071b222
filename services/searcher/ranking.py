"""From candidates to hits: thresholds, relevancy, grouping, order. The same for every engine.

A ranking asks its engine for the best `count` records, and for more whenever thresholds or grouping have
left too few to fill the page, until the page is full or there are no more records. So a filter, a
threshold or grouping never shortens a page that could be full; only relevancy does, which is looked for
among the nearest `RELEVANT_AMONG` records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.searcher.types import Level, Position, Query, Vectors

RELEVANCY_SCALE = 100.0
"""Factor of the cosines in the softmax: CLIP's trained logit scale (arXiv 2103.00020, section 2.5)."""

RELEVANT_AMONG = 16_384
"""Records nearest to the query among which relevant ones are looked for. Where negatives leave nothing, a
ranking would else score the whole collection, and all others would wait."""

_SPARE = 16
_GROWTH = 4

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Records with their scores, in any order. They hold, for each query vector, its best `count` records.

    Attributes:
        key: The engine's own numbers of the records, shape (rows,).
        image: The engine's own numbers of their images, shape (rows,).
        level: Levels, shape (rows,).
        scores: Cosines with the query vectors, then with the negatives, shape (rows, queries + negatives).
        complete: Whether these are all records that pass the filter.
    """

    key: Numbers
    image: Numbers
    level: NDArray[np.uint8]
    scores: Vectors
    complete: bool


class Source(Protocol):
    """What a ranking needs from an engine: records of one state that pass one filter."""

    def best(self, count: int) -> Candidates:
        """The best `count` records of each query vector, and all that tie with the last of them."""
        ...

    def of_images(self, images: Numbers) -> Candidates:
        """All records of the images."""
        ...

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Image id and record id by key."""
        ...


@dataclass(frozen=True, slots=True)
class Ranked:
    """One hit by its key."""

    key: int
    position: Position
    relevancy: float | None
    query_index: int
    best_region: Ranked | None = None


@dataclass(frozen=True, slots=True)
class _Judged:
    """Candidates that pass the thresholds, with their final scores."""

    key: Numbers
    image: Numbers
    level: NDArray[np.uint8]
    score: NDArray[np.float32]
    relevancy: NDArray[np.float64] | None
    query_index: NDArray[np.intp]

    def take(self, rows: NDArray[np.generic]) -> _Judged:
        relevancy = None if self.relevancy is None else self.relevancy[rows]
        return _Judged(
            self.key[rows],
            self.image[rows],
            self.level[rows],
            self.score[rows],
            relevancy,
            self.query_index[rows],
        )


@dataclass(frozen=True, slots=True)
class _Entries:
    """Rows that may stand on the page. `regions` holds for a whole image its best regions, by image."""

    rows: _Judged
    regions: dict[int, _Judged] = field(default_factory=dict)


def rank(query: Query, source: Source) -> tuple[list[Ranked], bool]:
    """The hits of a query behind its `after`, in order, and whether more follow.

    Args:
        query: What is looked for.
        source: The records to rank.
    """
    wanted = query.skipped + query.limit + 1
    count = first_count(query)
    most = max(count, RELEVANT_AMONG) if len(query.negatives) else None
    while True:
        candidates = source.best(count)
        judged, threshold = _judge(query, candidates)
        # Whatever is not among the candidates scores less than this.
        floor = -np.inf if candidates.complete else _floor(query, candidates, count)
        known = judged.take(judged.score >= floor)
        entries = _group(query, source, known, wanted, threshold) if query.group_by_image else _Entries(known)
        rows = entries.rows.take(entries.rows.score >= floor)
        hits = _ordered(query, source, _Entries(rows, entries.regions))
        if len(hits) > query.limit or candidates.complete or floor <= threshold or count == most:
            return hits[: query.limit], len(hits) > query.limit
        count = count * _GROWTH if most is None else min(count * _GROWTH, most)


def first_count(query: Query) -> int:
    """How many of the best records a ranking asks its source for first."""
    return query.skipped + query.limit + 1 + _SPARE


def relevancies(scores: NDArray[np.float32], negatives: Vectors) -> NDArray[np.float64]:
    """The smallest softmax of each score against one of the negatives' scores.

    Relevancy as in LERF (arXiv 2303.09553, section 3.4), with CLIP's own scale.

    Args:
        scores: Cosines with the query, shape (rows,).
        negatives: Cosines with the negatives, shape (rows, negatives), at least one column.
    """
    excess = (negatives.max(axis=1) - scores).astype(np.float64)
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(RELEVANCY_SCALE * excess, -500.0, 500.0))))


def _judge(query: Query, candidates: Candidates) -> tuple[_Judged, float]:
    """Applies the thresholds; returns the lowest score that passes too."""
    positives = candidates.scores[:, : len(query.vectors)]
    negatives = candidates.scores[:, len(query.vectors) :]
    best = positives.argmax(axis=1)
    score = positives[np.arange(len(best)), best]
    relevancy = relevancies(score, negatives) if negatives.shape[1] else None
    passing = np.ones(len(score), np.bool_) if relevancy is None else relevancy >= query.min_relevancy
    threshold = -np.inf if query.min_score is None else float(np.float32(query.min_score))
    if query.relative_cutoff is not None and passing.any():
        top = float(score[passing].max())
        threshold = max(threshold, top - (1.0 - query.relative_cutoff) * abs(top))
    judged = _Judged(candidates.key, candidates.image, candidates.level, score, relevancy, best)
    return judged.take(passing & (score >= threshold)), threshold


def _floor(query: Query, candidates: Candidates, count: int) -> float:
    columns = candidates.scores[:, : len(query.vectors)]
    if len(columns) < count:
        return float(np.inf)
    cut = len(columns) - count
    return float(np.partition(columns, cut, axis=0)[cut].max())


def _group(query: Query, source: Source, rows: _Judged, wanted: int, threshold: float) -> _Entries:
    """Each image's rows that may stand for it."""
    if query.level is not None:
        return _Entries(rows.take(_best_of_each(rows)))
    # A whole image may stand for its better region and so score less than it; look as far as that can reach.
    leaders = rows.take(_best_of_each(rows))
    images, first = np.unique(leaders.image, return_index=True)
    if len(images) > wanted:
        scores = leaders.score[first]
        reach = np.partition(scores, len(scores) - wanted)[len(scores) - wanted] - query.whole_image_margin
        images = images[scores >= reach]
    judged, _ = _judge(query, source.of_images(images))
    judged = judged.take(judged.score >= threshold)
    whole = judged.take(judged.level == Level.IMAGE)
    region = judged.take(judged.level == Level.REGION)
    whole, region = whole.take(_best_of_each(whole)), region.take(_best_of_each(region))
    region_score = dict(zip(region.image.tolist(), region.score.tolist(), strict=True))
    lead = np.array(
        [
            region_score.get(image, -np.inf) - score < query.whole_image_margin
            for image, score in zip(whole.image.tolist(), whole.score.tolist(), strict=True)
        ],
        np.bool_,
    )
    whole = whole.take(lead)
    behind = np.isin(region.image, whole.image)
    companions = region.take(behind)
    alone = region.take(~behind)
    return _Entries(
        _joined(whole, alone),
        {int(image): companions.take(companions.image == image) for image in np.unique(companions.image)},
    )


def _best_of_each(rows: _Judged) -> NDArray[np.bool_]:
    """Which rows score best in their image; ties all count."""
    images, place = np.unique(rows.image, return_inverse=True)
    top = np.full(len(images), -np.inf, np.float32)
    np.maximum.at(top, place, rows.score)
    return np.asarray(rows.score == top[place])


def _joined(one: _Judged, other: _Judged) -> _Judged:
    relevancy = None if one.relevancy is None or other.relevancy is None else np.concatenate(
        [one.relevancy, other.relevancy]
    )  # fmt: skip
    return _Judged(
        np.concatenate([one.key, other.key]),
        np.concatenate([one.image, other.image]),
        np.concatenate([one.level, other.level]),
        np.concatenate([one.score, other.score]),
        relevancy,
        np.concatenate([one.query_index, other.query_index]),
    )


def _ordered(query: Query, source: Source, entries: _Entries) -> list[Ranked]:
    """Up to one hit more than the page holds, in the total order."""
    rows = entries.rows
    after = query.after
    if after is not None:
        rows = rows.take(rows.score <= after.score)
    # Only rows that can be on the page, and those that tie with its ends, need their ids for the order.
    enough = query.limit + 1
    if after is not None:
        enough += int(np.count_nonzero(rows.score == np.float32(after.score)))
    if query.group_by_image:
        enough += len(rows.image) - len(np.unique(rows.image))
    if len(rows.score) > enough:
        cut = len(rows.score) - enough
        rows = rows.take(rows.score >= np.partition(rows.score, cut)[cut])
    shown = set(rows.image.tolist())
    companions = {image: regions for image, regions in entries.regions.items() if image in shown}
    ids = source.public_ids([*rows.key.tolist(), *(k for r in companions.values() for k in r.key.tolist())])
    hits: list[Ranked] = []
    seen: set[int] = set()
    for hit, image in sorted(_hits(rows, ids), key=lambda pair: pair[0].position.sort_key):
        if query.group_by_image:
            if image in seen:
                continue
            seen.add(image)
        if after is not None and hit.position.sort_key <= after.sort_key:
            continue
        if image in companions and hit.position.level == Level.IMAGE:
            region = min(_hits(companions[image], ids), key=lambda pair: pair[0].position.sort_key)[0]
            hit = Ranked(hit.key, hit.position, hit.relevancy, hit.query_index, region)
        hits.append(hit)
    return hits


def _hits(rows: _Judged, ids: dict[int, tuple[str, str]]) -> Sequence[tuple[Ranked, int]]:
    relevancy = [None] * len(rows.key) if rows.relevancy is None else rows.relevancy.tolist()
    columns = zip(
        rows.key.tolist(), rows.image.tolist(), rows.level.tolist(), rows.score.tolist(), relevancy,
        rows.query_index.tolist(), strict=True,
    )  # fmt: skip
    return [
        (Ranked(key, Position(score, level, *ids[key]), relevant, index), image)
        for key, image, level, score, relevant, index in columns
    ]
