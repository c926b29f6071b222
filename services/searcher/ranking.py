"""From candidates to hits: thresholds, relevancy, grouping, order. The same for every engine.

A ranking asks its engine for the best `count` records, and for more whenever thresholds or grouping have
left too few to fill the page, until the page is full or there are no more records. So a filter, a
threshold or grouping never shortens a page that could be full; only relevancy does, which is looked for
among the nearest `RELEVANT_AMONG` records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regionsearch.relevancy import relevancies
from services.searcher.candidates import Candidates, CandidateSource, Numbers
from services.searcher.queries import Position, Query
from services.searcher.types import Level

RELEVANT_AMONG = 16_384
"""Records nearest to the query among which relevant ones are looked for. Where negatives leave nothing, a
ranking would else score the whole collection, and all others would wait."""

_SPARE = 16
_GROWTH = 4
_HIGHEST_THRESHOLD = 1.0 - 2.0**-22
"""Rounding a stored vector to half precision turns it by up to 2^-11; its cosine with the original is lower
than one by half the square of that. A higher threshold would hide vectors from themselves."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One hit by its key."""

    key: int
    position: Position
    relevancy: float | None
    query_index: int
    best_region: Ranked | None = None
    folded: int = 0


@dataclass(frozen=True, slots=True)
class _Judged:
    """Candidates with their final scores."""

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


def rank(query: Query, source: CandidateSource) -> tuple[list[Ranked], bool]:
    """The hits of a query behind its `after`, in order, and whether more follow.

    Args:
        query: The query.
        source: The records to rank.
    """
    count = first = first_count(query, source.ahead)
    most = max(count, RELEVANT_AMONG) if len(query.negatives) else None
    while True:
        candidates = source.best(count)
        judged = _scored(query, candidates)
        known, floor = (judged, -np.inf) if candidates.complete else _known(source, candidates, judged, count)
        passing, threshold = _passing(query, known)
        entries = _Entries(passing)
        if query.group_by_image:
            wanted = None if candidates.complete else query.limit + 1 + count - first
            entries = _group(query, source, passing, threshold, wanted)
            if not candidates.complete:
                leaders = known.take(_best_of_each(known)) if candidates.by_image else known
                certain = _certain(source, entries.rows, leaders.take(leaders.score == floor), floor)
                entries = _Entries(entries.rows.take(certain), entries.regions)
        hits = _ordered(query, source, entries)
        if len(hits) > query.limit or candidates.complete or floor < threshold or count == most:
            return hits[: query.limit], len(hits) > query.limit
        count = count * _GROWTH if most is None else min(count * _GROWTH, most)


def first_count(query: Query, ahead: int) -> int:
    """How many of the best records a ranking asks its source for first; `ahead` is the source's."""
    return ahead + query.limit + 1 + _SPARE


def _scored(query: Query, candidates: Candidates) -> _Judged:
    """Each candidate with the score of its best query vector."""
    positives = candidates.scores[:, : len(query.vectors)]
    negatives = candidates.scores[:, len(query.vectors) :]
    best = positives.argmax(axis=1)
    score = positives[np.arange(len(best)), best]
    relevancy = relevancies(score, negatives) if negatives.shape[1] else None
    return _Judged(candidates.key, candidates.image, candidates.level, score, relevancy, best)


def _known(
    source: CandidateSource, candidates: Candidates, rows: _Judged, count: int
) -> tuple[_Judged, float]:
    """The best `count` of incomplete candidates, which precede all that is missing; their last score."""
    leaders = rows.take(_best_of_each(rows)) if candidates.by_image else rows
    images, first = np.unique(leaders.image, return_index=True)
    scores = leaders.score[first] if candidates.by_image else leaders.score
    if len(scores) < count:
        return rows.take(np.zeros(len(rows.key), np.bool_)), np.inf
    floor = float(np.partition(scores, len(scores) - count)[len(scores) - count])
    needed = count - int(np.count_nonzero(scores > floor))
    if needed == int(np.count_nonzero(scores == floor)):
        return rows.take(rows.score >= floor), floor
    # More tie with the last one than are needed, and others that tie may be missing: the ids decide.
    tied = leaders.take(leaders.score == floor)
    ids = source.public_ids(tied.key.tolist())
    order = sorted(
        zip(tied.level.tolist(), tied.key.tolist(), tied.image.tolist(), strict=True),
        key=lambda row: (row[0], *ids[row[1]]),
    )
    if not candidates.by_image:
        kept = np.array([key for _, key, _ in order[:needed]], np.int64)
        return rows.take((rows.score > floor) | np.isin(rows.key, kept)), floor
    chosen = np.array(list(dict.fromkeys(image for _, _, image in order))[:needed], np.int64)
    above = images[scores > floor]
    return rows.take(np.isin(rows.image, np.concatenate([above, chosen]))), floor


def _certain(source: CandidateSource, entries: _Judged, last: _Judged, floor: float) -> NDArray[np.bool_]:
    """Which entries precede all that is missing, which comes behind the `last` known rows of score `floor`.

    An entry need not be the best row of its image: a whole image may stand for a better region of it.
    """
    certain = entries.score > floor
    tied = np.flatnonzero(entries.score == floor)
    if len(tied):
        ids = source.public_ids([*entries.key[tied].tolist(), *last.key.tolist()])
        first: dict[int, tuple[int, str, str]] = {}
        rows = zip(last.image.tolist(), last.level.tolist(), last.key.tolist(), strict=True)
        for image, level, key in rows:
            place = (level, *ids[key])
            first[image] = min(first.get(image, place), place)
        end = max(first.values(), default=(0, "", ""))
        places = zip(entries.level[tied].tolist(), entries.key[tied].tolist(), strict=True)
        certain[tied] = [(level, *ids[key]) <= end for level, key in places]
    return certain


def _passing(query: Query, rows: _Judged) -> tuple[_Judged, float]:
    """Applies the thresholds; returns the lowest score that passes too."""
    relevant = (
        np.ones(len(rows.score), np.bool_)
        if rows.relevancy is None
        else rows.relevancy >= query.min_relevancy
    )
    threshold = -np.inf
    if query.min_score is not None:
        threshold = min(float(np.float32(query.min_score)), _HIGHEST_THRESHOLD)
    if query.relative_cutoff is not None and relevant.any():
        top = float(rows.score[relevant].max())
        threshold = max(threshold, top - (1.0 - query.relative_cutoff) * abs(top))
    return rows.take(relevant & (rows.score >= threshold)), threshold


def _group(
    query: Query, source: CandidateSource, rows: _Judged, threshold: float, wanted: int | None
) -> _Entries:
    """The rows that may stand for the images, at least for the best `wanted` not shown; None is all."""
    # A whole image may stand for its better region and so score less than it; look as far as that can reach.
    margin = query.whole_image_margin if query.level is None else 0.0
    leaders = rows.take(_best_of_each(rows))
    images, first = np.unique(leaders.image, return_index=True)
    scores = leaders.score[first]
    if wanted is not None and query.after is not None:  # earlier pages have shown some of these
        wanted += int(np.count_nonzero(scores >= np.float32(query.after.score))) + len(query.shown)
    if wanted is not None and len(images) > wanted:
        reach = np.partition(scores, len(scores) - wanted)[len(scores) - wanted] - margin
        images = images[scores >= reach]
    judged = _scored(query, source.of_images(images))
    judged, _ = _passing(query, judged)
    judged = judged.take(judged.score >= threshold)
    if query.level is not None:
        return _Entries(judged.take(_best_of_each(judged)))
    whole = judged.take(judged.level == Level.IMAGE)
    region = judged.take(judged.level == Level.REGION)
    whole, region = whole.take(_best_of_each(whole)), region.take(_best_of_each(region))
    region_score = dict(zip(region.image.tolist(), region.score.tolist(), strict=True))
    lead = np.array(
        [
            region_score.get(image, -np.inf) - score < margin
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


def _ordered(query: Query, source: CandidateSource, entries: _Entries) -> list[Ranked]:
    """Up to one hit more than the page holds, in the total order."""
    rows = entries.rows
    after = query.after
    if after is not None:
        rows = rows.take(rows.score <= after.score)
    # Only rows that can be on the page, and those that tie with its ends, need their ids for the order.
    enough = query.limit + 1 + len(query.shown)
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
    seen, passed = set[int](), frozenset(query.shown)
    for hit, image in sorted(_hits(rows, ids), key=lambda pair: pair[0].position.sort_key):
        if query.group_by_image:
            if image in seen:
                continue
            seen.add(image)
        if hit.key in passed or (after is not None and hit.position.sort_key <= after.sort_key):
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
