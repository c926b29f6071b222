"""Records and images by filter, in the order of lists, and how many there are: exact, without a query.

The index tells which rows pass, as it does for a search; the record store tells their order. Images are
walked from a place on in the store's own order, so a whole walk passes over each image once, however few
records pass.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.index.filters import Selected
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.queries.filter_compiler import select_rows
from services.searcher.embedded.rows import RowIds
from services.searcher.embedded.store import lookups, reads
from services.searcher.embedded.store.database import Database
from services.searcher.queries import NO_FILTER, Filter
from services.searcher.response_budget import ResponseBudget
from services.searcher.scrolling import (
    NEWEST_FIRST,
    Counts,
    Facet,
    FacetCounts,
    FacetValue,
    ImageOrder,
    Place,
    RecordPage,
    Scroll,
    most_frequent,
    sort_key,
)
from services.searcher.types import ImagePage, ImagePlace, Level, Record, Stored, StoredImage

_FIRST, _WALKED = 64, 4096  # images that are looked at together, at first and at most
_PICKED = 128  # first images that are found without ordering all
_VECTOR_ITEM = np.dtype(np.float32).itemsize


@dataclass(frozen=True, slots=True)
class _Matching:
    """The rows that pass a filter, by image.

    Attributes:
        selected: They, by segment.
        images: Rowids of their images, ascending, shape (images,).
        counts: How many rows of each image pass, shape (images,).
    """

    selected: Sequence[Selected]
    images: RowIds
    counts: NDArray[np.intp]

    @property
    def records(self) -> tuple[RowIds, RowIds]:
        """The rowids of all rows, and those of their images."""
        chosen = [(one.segment.columns, _passing(one)) for one in self.selected]
        none = np.empty(0, np.int64)
        return (
            np.concatenate([none, *(columns.record_rowid[rows] for columns, rows in chosen)]),
            np.concatenate([none, *(columns.image_rowid[rows] for columns, rows in chosen)]),
        )


def _passing(one: Selected) -> NDArray[np.intp] | slice:
    return slice(0, one.rows) if one.mask is None else np.flatnonzero(one.mask)


def _matching(
    database: Database, collection: OpenCollection, wanted: Filter, level: Level | None, seq: int
) -> _Matching:
    selected = select_rows(database, collection, wanted, level, seq)
    owners = [one.segment.columns.image_rowid[_passing(one)] for one in selected]
    images, counts = np.unique(np.concatenate([np.empty(0, np.int64), *owners]), return_counts=True)
    return _Matching(selected, images, counts)


def scroll(
    database: Database, collection: OpenCollection, asked: Scroll, seq: int, budget: ResponseBudget
) -> RecordPage:
    """A page of records. It ends early, before the first record that `budget` does not fit.

    Args:
        database: The record store.
        collection: The collection.
        asked: The page.
        seq: The write whose state is read; it is held.
        budget: What is read is deducted.

    Raises:
        RegionSearchError: TOO_LARGE when not even one record fits.
    """
    selected = select_rows(database, collection, asked.filter, asked.level, seq)
    with database.reading() as connection:
        places = _places(connection, collection.rowid, selected, asked, seq)
        records: list[tuple[int, Record]] = []
        images: dict[str, StoredImage] = {}
        last: Place | None = None
        refusal: RegionSearchError | None = None
        keys = [key for key, _ in places[: asked.limit]]
        rows = reads.hit_rows(connection, keys, masks=asked.include_masks)
        try:
            for (key, place), row in zip(places, rows, strict=False):
                if (described := row.described()) is not None:
                    record, image = described
                    budget.take_record(record)
                    if asked.include_vectors:
                        budget.take(collection.spec.model.dimension * _VECTOR_ITEM)
                    if image.image_id not in images:
                        shown = budget.shown(image)
                        budget.take_image(shown)
                        images[shown.image_id] = shown
                    records.append((key, record))
                last = place
        except RegionSearchError as error:
            if error.kind is not Kind.TOO_LARGE or not records:
                raise
            refusal = error
        vectors = None
        if asked.include_vectors:
            found = [key for key, _ in records]
            vectors = reads.vectors(connection, found, collection.spec.model.dimension)
    more = refusal is not None or len(places) > asked.limit
    used = {record.image_id for _, record in records}
    stored = Stored(
        tuple(record for _, record in records),
        tuple(image for image_id, image in images.items() if image_id in used),
        vectors,
        seq,
    )
    return RecordPage(stored, last if more else None)


def _places(
    connection: sqlite3.Connection,
    collection_rowid: int,
    selected: Sequence[Selected],
    asked: Scroll,
    seq: int,
) -> list[tuple[int, Place]]:
    """Rowids and places of the next records; one more than asked for if there are so many."""
    after = asked.after
    begun = None if after is None else (after[0], after[1])
    walk = lookups.images_newest_first(connection, collection_rowid, seq, begun, inclusive=True)
    order: dict[int, tuple[int, str]] = {}
    keys = [np.empty(0, np.int64)]
    left, size = asked.limit + 1, _FIRST
    while left > 0 and (block := list(itertools.islice(walk, size))):
        images = np.fromiter((image for image, _ in block), np.int64)
        found, owners = _records_of(selected, images)
        numbers = np.argsort(images)[np.searchsorted(np.sort(images), owners)]  # of images, in their order
        counts = np.bincount(numbers, minlength=len(images))
        if block[0][1] == begun:
            counts[0] = 0  # earlier pages may have shown all of these
        needed = int(np.searchsorted(np.cumsum(counts), left)) + 1
        order.update(block[:needed])
        keys.append(found[numbers < needed])
        left -= int(counts[:needed].sum())
        size = min(2 * size, _WALKED)
    rank = {image: number for number, image in enumerate(order)}
    rows = lookups.record_places(connection, np.concatenate(keys).tolist())
    ordered = sorted((rank[image], level, record_id, key, image) for key, image, level, record_id in rows)
    places = [
        (key, (*order[image], level, record_id))
        for _, level, record_id, key, image in ordered
        if order[image] != begun or after is None or (level, record_id) > after[2:]
    ]
    return places[: asked.limit + 1]


def _records_of(selected: Sequence[Selected], images: RowIds) -> tuple[RowIds, RowIds]:
    """The rowids of the rows of some images, and of the image of each."""
    keys, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for one in selected:
        columns = one.segment.columns
        rows = columns.rows_of_images(images, one.rows)
        rows = rows if one.mask is None else rows[one.mask[rows]]
        keys.append(columns.record_rowid[rows])
        owners.append(columns.image_rowid[rows])
    return np.concatenate(keys), np.concatenate(owners)


def list_images(
    database: Database,
    collection: OpenCollection,
    wanted: Filter,
    order: ImageOrder,
    limit: int,
    after: ImagePlace | None,
    seq: int,
    budget: ResponseBudget,
) -> ImagePage:
    """Images from behind a place; with a filter those of which a record passes.

    Args:
        database: The record store.
        collection: The collection.
        wanted: The filter.
        order: What they are in the order of.
        limit: Images wanted.
        after: The place.
        seq: With a filter, the write whose state is read; it is held.
        budget: What is read is deducted.
    """
    matching = None if wanted == NO_FILTER else _matching(database, collection, wanted, None, seq)
    with database.reading() as connection:
        if matching is None:
            total, _ = reads.counts(connection, collection.rowid)
            walk = _walk(connection, collection.rowid, order, None, after)
        else:
            total = len(matching.images)
            walk = _among(matching.images, _walk(connection, collection.rowid, order, seq, after))
        shown, following = reads.images_in_order(connection, walk, limit, budget)
    return ImagePage(tuple(shown), following, total)


def _walk(
    connection: sqlite3.Connection,
    collection_rowid: int,
    order: ImageOrder,
    seq: int | None,
    after: ImagePlace | None,
) -> Iterator[tuple[int, ImagePlace]]:
    """Rowid and place of all images in order, from behind a place.

    In an order other than that of their first writes, every page reads the values of all images.
    """
    if order.by == NEWEST_FIRST.by:
        begun = None if after is None else (int(after[0]), after[1])
        yield from lookups.images_newest_first(
            connection, collection_rowid, seq, begun, ascending=order.ascending
        )
        return
    values = lookups.image_values(connection, collection_rowid, order.attribute)
    behind = None if after is None else (str(after[0]), after[1])
    missing = "2" if order.ascending else " "  # behind all values
    everything = (
        (image, (sort_key(values[image]) if image in values else f"{missing}{place:020}", image_id))
        for image, (place, image_id) in lookups.images_newest_first(connection, collection_rowid, seq, None)
    )
    follows = operator.gt if order.ascending else operator.lt
    placed = [one for one in everything if behind is None or follows(one[1], behind)]
    key, first = operator.itemgetter(1), heapq.nsmallest if order.ascending else heapq.nlargest
    yield from first(_PICKED, placed, key)  # enough for nearly every page
    if len(placed) > _PICKED:
        yield from sorted(placed, key=key, reverse=not order.ascending)[_PICKED:]


def _among(among: RowIds, walk: Iterator[tuple[int, ImagePlace]]) -> Iterator[tuple[int, ImagePlace]]:
    """Those images of a walk that are among the given ones."""
    while block := list(itertools.islice(walk, _WALKED)):
        found = np.isin(np.fromiter((image for image, _ in block), np.int64), among)
        for number in np.flatnonzero(found).tolist():
            yield block[number]


def count(
    database: Database,
    collection: OpenCollection,
    wanted: Filter,
    level: Level | None,
    facets: Sequence[Facet],
    seq: int,
) -> Counts:
    """How many records pass a filter in the state after write `seq`, which is held."""
    matching = _matching(database, collection, wanted, level, seq)
    found: list[FacetCounts] = []
    with database.reading() as connection:
        for facet in facets:
            if facet.attribute:
                values = _by_attribute(connection, collection.rowid, facet.attribute, matching)
            else:
                values = _by_tag(connection, collection.rowid, matching)
            found.append(most_frequent(values, facet.limit))
    return Counts(int(matching.counts.sum()), len(matching.images), tuple(found), seq)


def _by_tag(
    connection: sqlite3.Connection, collection_rowid: int, matching: _Matching
) -> Iterator[FacetValue]:
    for tag, images in lookups.images_by_tag(connection, collection_rowid):
        places = _places_in(matching.images, images)
        yield FacetValue(tag, int(matching.counts[places].sum()), len(places))


def _by_attribute(
    connection: sqlite3.Connection, collection_rowid: int, name: str, matching: _Matching
) -> Iterator[FacetValue]:
    """A record's own value counts, or else its image's."""
    left = matching.counts.copy()  # of each image: records without a value of their own
    own: dict[str, tuple[int, RowIds]] = {}  # number of records, places of their images
    by_record = lookups.records_by_value(connection, collection_rowid, name)
    if by_record:
        keys, owners = matching.records
        order = np.argsort(keys)
        keys, owners = keys[order], owners[order]
        for value, records in by_record:
            images = np.searchsorted(matching.images, owners[_places_in(keys, records)])
            left -= np.bincount(images, minlength=len(left))
            own[value] = len(images), np.unique(images)
    by_image = dict(lookups.images_by_value(connection, collection_rowid, name))
    for value in by_image.keys() | own.keys():
        places = _places_in(matching.images, by_image.get(value, matching.images[:0]))
        places = places[left[places] > 0]
        count, images = own.get(value, (0, places[:0]))
        yield FacetValue(value, count + int(left[places].sum()), len(np.union1d(places, images)))


def _places_in(ordered: RowIds, values: RowIds) -> NDArray[np.intp]:
    """Places, among ascending rowids, of those of the values that are there."""
    places = np.searchsorted(ordered, values)
    inside = places < len(ordered)
    places, values = places[inside], values[inside]
    found: NDArray[np.intp] = places[ordered[places] == values]
    return found
