"""What an engine is asked and answers without a query vector: records by filter, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from services.searcher.conditions import number_of, time_of
from services.searcher.queries import NO_FILTER, Filter
from services.searcher.types import Level, Stored

Place = tuple[int, str, int, str]
"""Where a record stands: a number of the engine's that orders images, image id, level, record id."""

_DIGITS = re.compile(r"\d+", re.ASCII)
_PADDED, _COMPARED = 16, 200  # digits of a number in a text; characters of a text
_SIGN = 1 << 63


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
class ImageOrder:
    """The order of a list of images: by when they were added, their names, or an attribute.

    Attributes:
        by: "created_at", "name" or "attributes.NAME".
        ascending: Whether the lowest value comes first.
    """

    by: str = "created_at"
    ascending: bool = False

    @property
    def attribute(self) -> str:
        """The attribute's name; "" for another order."""
        return self.by.removeprefix("attributes.") if self.by.startswith("attributes.") else ""


NEWEST_FIRST = ImageOrder()


@lru_cache(maxsize=1 << 17)  # each page of a list compares the values of all images; some 30 MB
def sort_key(value: str) -> str:
    """A text that stands among others as a value does: numbers and times by value, then texts.

    In texts, case does not count and numbers count as such: IMG_2 comes before img_10.
    """
    number = number_of(value)
    number = time_of(value) if number is None else number
    if number is None:
        text = value.casefold()[:_COMPARED]
        return "1" + _DIGITS.sub(lambda found: found[0].zfill(_PADDED), text)[:_COMPARED]
    bits: int = np.float64(number + 0.0).view(np.uint64).item()  # no negative zero
    return f"0{bits ^ (_SIGN if number >= 0 else 2 * _SIGN - 1):016x}"


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
