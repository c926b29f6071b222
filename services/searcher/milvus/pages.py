"""Pages of hits: ranked places with their records and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.milvus.access import Access, Row
from services.searcher.milvus.contents import Contents
from services.searcher.milvus.rows import record_of
from services.searcher.milvus.source import MilvusSource
from services.searcher.milvus.tables import Placement
from services.searcher.ranking import Ranked
from services.searcher.response_budget import ResponseBudget
from services.searcher.types import Hit, Page, Query, StoredImage

_READ_AT_ONCE = 100  # hits whose records and images are read together


@dataclass(frozen=True)
class PageReader:
    """Reads what the hits of one query need.

    Attributes:
        access: The connection.
        contents: Of the collection.
        placement: Where it lies.
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
            return Hit(number, place.score, found.relevancy, found.query_index, record, image, region)

        for number, one in numbered:
            if one.position.record_id in records:
                yield hit(number, one)
