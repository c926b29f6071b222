"""Records by filter in the order of their ids, and how many there are, out of Milvus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.milvus.access import Access, Freshness
from services.searcher.milvus.contents import Contents
from services.searcher.milvus.expressions import expression, quoted
from services.searcher.milvus.rows import record_of
from services.searcher.milvus.tables import Placement
from services.searcher.queries import NO_FILTER, Filter
from services.searcher.response_budget import ResponseBudget
from services.searcher.scrolling import Counts, Facet, FacetValue, Place, Scroll, most_frequent
from services.searcher.types import Level, Record, Stored, StoredImage

_NOW = 0  # the write that answers name; the engine knows it


def scroll(
    access: Access,
    placement: Placement,
    contents: Contents,
    asked: Scroll,
    freshness: Freshness,
    budget: ResponseBudget,
) -> tuple[Stored, Place | None]:
    """Records behind a place, and the place where more follow.

    Raises:
        RegionSearchError: TOO_LARGE when not even one record fits.
    """
    terms = [expression(placement, asked.filter, asked.level)]
    if asked.after is not None:
        terms.append(f"record_id > {quoted(asked.after[3])}")
    fields = [*(placement.whole if asked.include_masks else placement.payload)]
    if asked.include_vectors:
        fields.append("vector")
    term = " and ".join(f"({term})" for term in terms if term)
    rows = access.first(placement.records, term, fields, asked.limit + 1, freshness)
    images = contents.images(dict.fromkeys(row["image_id"] for row in rows), freshness=freshness)
    records: list[Record] = []
    shown: dict[str, StoredImage] = {}
    try:
        for row in rows[: asked.limit]:
            record = record_of(row, masks=asked.include_masks)
            budget.take_record(record)
            budget.take(4 * len(row["vector"]) if asked.include_vectors else 0)
            if record.image_id not in shown:
                image = budget.shown(images.get(record.image_id, StoredImage(record.image_id)))
                budget.take_image(image)
                shown[record.image_id] = image
            records.append(record)
    except RegionSearchError as error:
        if error.kind is not Kind.TOO_LARGE or not records:
            raise
    vectors = None
    if asked.include_vectors:
        listed = [row["vector"] for row in rows[: len(records)]]
        vectors = np.array(listed, np.float32).reshape(-1, placement.collection.model.dimension)
    used = {record.image_id for record in records}
    stored = Stored(tuple(records), tuple(shown[name] for name in shown if name in used), vectors, _NOW)
    if len(records) == len(rows):
        return stored, None
    last = records[-1]
    return stored, (0, last.image_id, int(last.level), last.record_id)


def count(
    access: Access,
    placement: Placement,
    contents: Contents,
    wanted: Filter,
    level: Level | None,
    facets: Sequence[Facet],
    freshness: Freshness,
) -> Counts:
    """How many records pass, of how many images, and by facets; reads all that pass."""
    if wanted == NO_FILTER and level is None and not facets:
        image_count, record_count = contents.counts()
        return Counts(record_count, image_count, (), _NOW)
    fields = ["record_id", "image_id"]
    fields += ["tags"] if any(not facet.attribute for facet in facets) else []
    fields += ["attributes"] if any(facet.attribute for facet in facets) else []
    images: Counter[str] = Counter()
    records: list[Counter[str]] = [Counter() for _ in facets]
    owners: list[set[tuple[str, str]]] = [set() for _ in facets]
    for row in access.rows(placement.records, expression(placement, wanted, level), fields, freshness):
        images[row["image_id"]] += 1
        for facet, counted, owned in zip(facets, records, owners, strict=True):
            if facet.attribute:
                value = row["attributes"].get(facet.attribute)
                values = [] if value is None else [value]
            else:
                values = row["tags"]
            counted.update(values)
            owned.update((value, row["image_id"]) for value in values)
    return Counts(
        images.total(),
        len(images),
        tuple(
            most_frequent(_values(counted, owned), facet.limit)
            for facet, counted, owned in zip(facets, records, owners, strict=True)
        ),
        _NOW,
    )


def _values(records: Counter[str], owners: set[tuple[str, str]]) -> list[FacetValue]:
    images = Counter(value for value, _ in owners)
    return [FacetValue(value, number, images[value]) for value, number in records.items()]
