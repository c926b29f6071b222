"""Candidates out of Milvus, scored again here so that every engine gives the same numbers; pages of hits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.candidates import Candidates, Numbers, cosines
from services.searcher.diversity import diverse
from services.searcher.milvus.access import Access, Freshness, Row
from services.searcher.milvus.contents import Contents
from services.searcher.milvus.expressions import expression
from services.searcher.milvus.rows import record_of
from services.searcher.milvus.tables import Placement
from services.searcher.queries import Hit, Page, Query
from services.searcher.ranking import Ranked
from services.searcher.response_budget import ResponseBudget
from services.searcher.settings import MilvusSettings
from services.searcher.types import StoredImage, Vectors

_SCORED = ["record_id", "image_id", "level", "vector"]
_EXACT = frozenset({"FLAT", "GPU_BRUTE_FORCE"})
_MOST_EFFORT = 16.0  # where all cannot be looked at
_MOST = {"ef": 32_768, "nprobe": 65_536, "level": 10}
_LEAST_EF = 64


class MilvusSource:
    """What a ranking sees of one collection.

    Args:
        access: The connection, for the caller who waits.
        placement: Where the collection lies.
        query: What is looked for. With a `seq`, records that were written later are left out.
        freshness: Freshness of the reads.
        settings: Settings of the index, and the most rows that Milvus returns for one search.

    Attributes:
        ahead: See `CandidateSource`.
        rows: Records that came with what a hit needs of them, by id.
    """

    def __init__(
        self,
        access: Access,
        placement: Placement,
        query: Query,
        freshness: Freshness,
        settings: MilvusSettings,
    ) -> None:
        self.ahead = query.skipped
        self.rows: dict[str, Row] = {}
        self._access = access
        self._placement = placement
        self._query = query
        self._freshness = freshness
        self._settings = settings
        self._max = settings.max_candidates
        self._approximate = settings.index_type not in _EXACT
        self._filter = expression(placement, query.filter, query.level, query.seq)
        self._keys: dict[str, int] = {}
        self._images: dict[str, int] = {}
        self._ids: list[tuple[str, str]] = []
        self._names: list[str] = []
        self._vectors: dict[int, NDArray[np.float64]] = {}

    def best(self, count: int) -> Candidates:
        """See `CandidateSource`; more than Milvus gives at once is all that there is."""
        if math.isinf(self._query.effort) and self._approximate and (every := self._all()) is not None:
            return self._candidates(every, complete=True)
        asked = min(count, self._max)
        while True:
            # One row more than asked for tells whether there are more, and whether the last one ties with it.
            found = self._nearest(min(asked + 1, self._max))
            rows = {hit["entity"]["record_id"]: hit["entity"] for hits in found for hit in hits}
            exhausted = all(len(hits) <= asked for hits in found)
            if self._approximate and any(len(hits) <= asked for hits in found) and self._count() > len(rows):
                # It comes to an end before the records do, as it does where few of them pass the filter.
                if (every := self._all()) is not None:
                    return self._candidates(every, complete=True)
                exhausted = False
            tied = any(
                len(hits) > count and hits[-1]["distance"] >= hits[count - 1]["distance"] - 1e-6
                for hits in found
            )
            exhausted = exhausted or asked >= self._max
            if exhausted or not tied:
                return self._candidates(list(rows.values()), complete=exhausted)
            asked = min(asked * 2, self._max)

    def of_images(self, images: Numbers) -> Candidates:
        """See `CandidateSource`."""
        names = [self._names[number] for number in images.tolist()]
        rows = self._access.rows_of(
            self._placement.records, "image_id", names, _SCORED, self._freshness, self._filter
        )
        return self._candidates(list(rows), complete=True)

    def _nearest(self, limit: int) -> list[list[Row]]:
        """For each query vector its nearest records, with the payload of hits where these are records."""
        fields = self._placement.whole if self._query.include_masks else self._placement.payload
        found = self._access.call(
            self._access.client.search,
            self._placement.records,
            data=self._query.vectors.tolist(),
            anns_field="vector",
            limit=limit,
            filter=self._filter,
            output_fields=_SCORED if self._query.group_by_image else [*fields, "vector"],
            search_params={"metric_type": "IP", "params": self._effort(limit)},
            **self._freshness,
        )
        return list(found)

    def _effort(self, limit: int) -> dict[str, int | float]:
        """Parameters of the index for the effort that the query asks for."""
        params = dict(self._settings.search_params)
        if self._settings.index_type == "HNSW":
            params["ef"] = max(limit, params.get("ef", _LEAST_EF))
        effort = min(self._query.effort, _MOST_EFFORT)
        return {
            name: min(max(round(value * effort), 1), _MOST[name]) if name in _MOST else value
            for name, value in params.items()
        }

    def _count(self) -> int:
        return self._access.count(self._placement.records, self._freshness, self._filter)

    def _all(self) -> list[Row] | None:
        """All records that pass the filter; None where they are too many to be read."""
        if self._count() > self._max:
            return None
        return list(self._access.rows(self._placement.records, self._filter, _SCORED, self._freshness))

    def vectors(self, keys: Sequence[int]) -> Vectors:
        """See `CandidateSource`; they came along with the candidates."""
        return np.array([self._vectors[key] for key in keys], np.float32).reshape(
            len(keys), self._query.vectors.shape[1]
        )

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        """See `CandidateSource`."""
        return {key: self._ids[key] for key in keys}

    def _candidates(self, rows: Sequence[Row], *, complete: bool) -> Candidates:
        if rows and "body" in rows[0]:
            self.rows.update((row["record_id"], row) for row in rows)
        against = np.concatenate([self._query.vectors, self._query.negatives])
        vectors = np.array([row["vector"] for row in rows], np.float64).reshape(-1, against.shape[1])
        keys = [self._key(row) for row in rows]
        if diverse(self._query):
            self._vectors.update(zip(keys, vectors, strict=True))
        return Candidates(
            key=np.array(keys, np.int64),
            image=np.array([self._image(row["image_id"]) for row in rows], np.int64),
            level=np.array([row["level"] for row in rows], np.uint8),
            scores=cosines(vectors, against),
            complete=complete,
        )

    def _key(self, row: Row) -> int:
        record_id: str = row["record_id"]
        if record_id not in self._keys:
            self._keys[record_id] = len(self._ids)
            self._ids.append((row["image_id"], record_id))
        return self._keys[record_id]

    def _image(self, image_id: str) -> int:
        if image_id not in self._images:
            self._images[image_id] = len(self._names)
            self._names.append(image_id)
        return self._images[image_id]


_READ_AT_ONCE = 100  # hits whose records and images are read together


@dataclass(frozen=True)
class PageReader:
    """Reads what the hits of one query need.

    Attributes:
        access: The connection.
        contents: The collection's contents.
        placement: Where the collection lies.
        source: What ranked the hits, with the rows that it has read already.
        query: The query.
        budget: Reads deduct from it.
    """

    access: Access
    contents: Contents
    placement: Placement
    source: MilvusSource
    query: Query
    budget: ResponseBudget

    def page(self, ranked: Sequence[Ranked], more: bool, seq: int, *, may_end_early: bool) -> Page:
        """A page of ranked hits; one that may end early does so before a hit that the budget does not fit."""
        hits: list[Hit] = []
        numbered = list(enumerate(ranked, start=self.query.skipped + 1))
        try:
            for start in range(0, len(numbered), _READ_AT_ONCE):
                for hit in self._hits(numbered[start : start + _READ_AT_ONCE]):
                    hits.append(hit)  # noqa: PERF402  # those before the one that does not fit count
        except RegionSearchError as error:
            if error.kind is not Kind.TOO_LARGE or not hits or not may_end_early:
                raise
            more = True
        return Page(tuple(hits), seq, more, self.placement.generation)

    def _hits(self, numbered: Sequence[tuple[int, Ranked]]) -> Iterator[Hit]:
        """Hits with their records and images; without those that were deleted since Milvus scored them."""
        places = [r.position for _, hit in numbered for r in (hit, hit.best_region) if r is not None]
        missing = [place.record_id for place in places if place.record_id not in self.source.rows]
        masks, contents, budget = self.query.include_masks, self.contents, self.budget
        fields = self.placement.whole if masks else self.placement.payload
        image_ids = {place.image_id for place in places}
        rows: list[Row] = []
        if missing:
            images, rows = self.access.at_once(
                lambda: contents.images(image_ids), lambda: list(contents.records(missing, [], fields))
            )
        else:
            images = contents.images(image_ids)
        found = self.source.rows | {row["record_id"]: row for row in rows}
        records = {
            place.record_id: record_of(found[place.record_id], masks=masks)
            for place in places
            if place.record_id in found
        }

        def hit(number: int, found: Ranked) -> Hit:
            place = found.position
            record = records[place.record_id]
            image = budget.shown(images.get(place.image_id, StoredImage(place.image_id)))
            budget.take_record(record)
            budget.take_image(image)
            region = None
            if found.best_region is not None and found.best_region.position.record_id in records:
                region = hit(number, found.best_region)
            return Hit(
                number, place.score, found.relevancy, found.query_index, record, image, region, found.folded
            )

        for number, one in numbered:
            if one.position.record_id in records:
                yield hit(number, one)
