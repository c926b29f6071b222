"""What an engine is asked and answers without a query vector: records by filter, and how many there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.searcher.queries import NO_FILTER, Filter
from services.searcher.types import Level, Stored

Place = tuple[int, str, int, str]
"""Where a record stands: a number of the engine's that orders images, image id, level, record id."""


@dataclass(frozen=True, slots=True)
class Scroll:
    """One page of the records that pass a filter.

    Attributes:
        level: Only records of this level; None is both.
        filter: Conditions on records.
        limit: Records wanted.
        after: Only records behind this place.
        generation: The generation of the collection to read (see `UpsertResult`); None is the present one.
        include_masks: Whether records carry their masks.
        include_vectors: Whether vectors come along.
    """

    level: Level | None = None
    filter: Filter = NO_FILTER
    limit: int = 100
    after: Place | None = None
    generation: str | None = None
    include_masks: bool = False
    include_vectors: bool = False


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Records with their images. `next_place` continues the list; None on the last page."""

    stored: Stored
    next_place: Place | None
    generation: str = ""


@dataclass(frozen=True, slots=True)
class Facet:
    """What to count by: the values of an attribute, or tags where it is empty; the `limit` most frequent."""

    attribute: str = ""
    limit: int = 20


@dataclass(frozen=True, slots=True)
class FacetValue:
    """A tag or value with the numbers of records that have it, and of their images."""

    value: str
    record_count: int
    image_count: int


@dataclass(frozen=True, slots=True)
class FacetCounts:
    """The most frequent values, and how many different ones there are."""

    values: tuple[FacetValue, ...]
    value_count: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records pass a filter, of how many images; and by facets."""

    record_count: int
    image_count: int
    facets: tuple[FacetCounts, ...]
    seq: int


def most_frequent(values: Iterable[FacetValue], limit: int) -> FacetCounts:
    """The first `limit` of a facet's values that any record has, by their numbers of records."""
    found = sorted(
        (one for one in values if one.record_count), key=lambda one: (-one.record_count, one.value)
    )
    return FacetCounts(tuple(found[:limit]), len(found))
