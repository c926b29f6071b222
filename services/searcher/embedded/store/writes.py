"""Every statement that changes the record store. Each function runs inside the group commit's transaction."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import invalid
from regionsearch.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST, check_same_request
from regionsearch.texts import MetadataLimits
from services.searcher.embedded.rows import Change, RowIds, Rows
from services.searcher.embedded.store import faults
from services.searcher.embedded.store.lookups import (
    LISTED,
    LiveImage,
    json_array,
    live_images,
    record_rowids_of_images,
    rowids_of_records,
)
from services.searcher.embedded.store.reads import IMAGE_VALUES, images_by_id
from services.searcher.queries import ImageUpdate
from services.searcher.types import Level, Record, StoredImage, Upsert, UpsertResult

# The + keeps SQLite from looking through all live records of the collection.
REMOVE_RECORDS = (
    f"UPDATE record SET removed = ? WHERE key {LISTED} AND +collection = ? AND removed IS NULL"  # noqa: S608
    " RETURNING key"
)
_NO_BOX = (None,) * 4
_NO_ROWS: RowIds = np.empty(0, np.int64)


def upsert(
    connection: sqlite3.Connection, collection_rowid: int, write: Upsert, seq: int
) -> tuple[UpsertResult, Change]:
    """Adds images and records; replaces those of the same ids.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a record whose image is unknown; ALREADY_EXISTS for an
            idempotency key that is to be checked and belongs to another request.
    """
    existing = live_images(connection, collection_rowid, [image.image_id for image in write.images])
    skipped = tuple(i.image_id for i in write.images if i.image_id in existing) if write.skip_existing else ()
    skip = set(skipped)
    images = [image for image in write.images if image.image_id not in skip]
    kept = [index for index, record in enumerate(write.records) if record.image_id not in skip]
    records = [write.records[index] for index in kept]

    if write.check_key:
        for image in images:
            _check_key(connection, collection_rowid, image)
    replaced = [existing[image.image_id] for image in images if image.image_id in existing]
    removed = _remove_images(connection, collection_rowid, [old.image_rowid for old in replaced], seq)
    owner_images = _owner_images(connection, collection_rowid, images, records)
    places = _Places(connection, collection_rowid, write.places)
    for image in images:
        created, place = places.of(image, existing.get(image.image_id))
        image_rowid = _insert_image(connection, collection_rowid, image, created, place, seq)
        owner_images[image.image_id] = LiveImage(image_rowid, created, place)
    taken = rowids_of_records(connection, collection_rowid, [record.record_id for record in records])
    bereft = _images_of(connection, taken)
    removed = np.concatenate([removed, _remove_records(connection, collection_rowid, taken, seq)])
    stored = write.vectors[np.array(kept, np.intp)].astype(np.float16)
    rows = _insert_records(connection, collection_rowid, records, owner_images, stored, seq)
    recounted = bereft | {owner_images[record.image_id].image_rowid for record in records}
    _count_regions(connection, recounted, seq)
    more_images, more_records = len(images) - len(replaced), len(records) - len(removed)
    _count(connection, collection_rowid, seq, images=more_images, records=more_records)
    return UpsertResult(seq, skipped, len(records)), Change(collection_rowid, seq, rows, np.sort(removed))


def update_images(
    connection: sqlite3.Connection,
    collection_rowid: int,
    updates: Sequence[ImageUpdate],
    limits: MetadataLimits,
    seq: int,
) -> tuple[tuple[StoredImage, ...], bool]:
    """Changes names, tags and attributes of images in place; returns the images, and whether any changed.

    In place, because a new version of an image would be one of all its records and vectors: pages of an
    earlier search see the new tags too.

    Raises:
        RegionSearchError: ABORTED for an image that is not as it was read; TOO_LARGE.
    """
    known = images_by_id(connection, collection_rowid, [update.image_id for update in updates])
    images: list[StoredImage] = []
    changed = False
    for update in updates:
        if update.image_id not in known:
            continue
        image_rowid, old = known[update.image_id]
        new = update.apply(old, limits)
        images.append(new)
        if new is old:
            continue
        changed = True
        connection.execute(
            "UPDATE image SET name = ?, tags = ?, attributes = ?, changed = ? WHERE ordinal = ?",
            (new.name, json.dumps(list(new.tags)), json.dumps(dict(new.attributes)), seq, image_rowid),
        )
        values = connection.execute(f"SELECT {IMAGE_VALUES} FROM image WHERE ordinal = ?", (image_rowid,))  # noqa: S608
        connection.execute(
            "UPDATE image SET checksum = ? WHERE ordinal = ?",
            (faults.of_values(*values.fetchone()), image_rowid),
        )
        connection.execute("DELETE FROM image_tag WHERE image = ?", (image_rowid,))
        connection.execute("DELETE FROM attribute WHERE image = ? AND record = 0", (image_rowid,))
        _insert_labels(connection, collection_rowid, image_rowid, new)
    return tuple(images), changed


def delete(
    connection: sqlite3.Connection,
    collection_rowid: int,
    image_ids: Sequence[str],
    record_rowids: RowIds,
    seq: int,
    *,
    drop_empty_images: bool,
) -> tuple[int, Change]:
    """Removes images with their records, and single records; returns the number of images that went.

    Args:
        connection: The writing connection.
        collection_rowid: The collection's rowid.
        image_ids: Images to remove.
        record_rowids: Records to remove.
        seq: Number of this write.
        drop_empty_images: Whether an image whose last record goes is removed too.
    """
    image_rowids = [
        image.image_rowid for image in live_images(connection, collection_rowid, image_ids).values()
    ]
    removed = _remove_images(connection, collection_rowid, image_rowids, seq)
    owner_images = _images_of(connection, record_rowids)
    taken = _remove_records(connection, collection_rowid, record_rowids, seq)
    emptied: list[int] = []
    if drop_empty_images:
        emptied = _empty_images(connection, owner_images)
        _remove_images(connection, collection_rowid, emptied, seq)
    _count_regions(connection, owner_images, seq)
    removed = np.concatenate([removed, taken])
    image_count = len(image_rowids) + len(emptied)
    _count(connection, collection_rowid, seq, images=-image_count, records=-len(removed))
    return image_count, Change(collection_rowid, seq, None, np.sort(removed))


def _owner_images(
    connection: sqlite3.Connection,
    collection_rowid: int,
    images: Sequence[StoredImage],
    records: Sequence[Record],
) -> dict[str, LiveImage]:
    """The stored images that the records belong to, without those just sent."""
    sent = {image.image_id for image in images}
    owner_images = live_images(connection, collection_rowid, list({r.image_id for r in records} - sent))
    for index, record in enumerate(records):
        if record.image_id not in sent and record.image_id not in owner_images:
            raise invalid(
                f"records[{index}].image_id",
                f"record {record.record_id!r} belongs to image {record.image_id!r}, which is neither in this "
                "request nor in the collection: send the image along",
            )
    return owner_images


def _check_key(connection: sqlite3.Connection, collection_rowid: int, image: StoredImage) -> None:
    """Refuses an image whose idempotency key belongs to another request; any image of the key tells whose."""
    key, request = (image.attributes.get(name) for name in (IDEMPOTENCY_KEY, IDEMPOTENCY_REQUEST))
    if key is None or request is None:
        return
    row = connection.execute(
        "SELECT image.attributes FROM attribute AS kept JOIN image ON image.ordinal = kept.image WHERE"
        " kept.collection = ? AND kept.name = ? AND value = ? AND record = 0 AND removed IS NULL LIMIT 1",
        (collection_rowid, IDEMPOTENCY_KEY, key),
    ).fetchone()
    if row is not None:
        check_same_request(json.loads(row[0]), request)


class _Places:
    """When images were first written, and their places in lists: newer images have higher ones.

    Places are times that never go back, whatever the clock does.
    """

    def __init__(
        self, connection: sqlite3.Connection, collection_rowid: int, given: Mapping[str, int]
    ) -> None:
        self._given = given
        query = "SELECT MAX(place) FROM image WHERE collection = ? AND removed IS NULL"
        self._last: int = connection.execute(query, (collection_rowid,)).fetchone()[0] or 0
        self._now = time.time_ns() // 1_000_000

    def of(self, image: StoredImage, replaced: LiveImage | None) -> tuple[int, int]:
        """Creation time and place; a new version keeps those of the one that it replaces."""
        if replaced is not None:
            return replaced.created_ms, replaced.place
        if image.created_ms:  # copied from another engine
            return image.created_ms, self._given.get(image.image_id, max(image.created_ms, 0))
        self._last = max(self._now, self._last + 1)
        return self._now, self._last


def _insert_image(
    connection: sqlite3.Connection,
    collection_rowid: int,
    image: StoredImage,
    created_ms: int,
    place: int,
    seq: int,
) -> int:
    values = (
        collection_rowid, image.image_id, image.name, image.width, image.height, image.content_type,
        image.size_bytes, json.dumps(list(image.tags)), json.dumps(dict(image.attributes)), created_ms, place,
    )  # fmt: skip
    row = connection.execute(
        f"INSERT INTO image ({IMAGE_VALUES}, region_count, added, checksum)"  # noqa: S608
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?) RETURNING ordinal",
        (*values, seq, faults.of_values(*values)),
    ).fetchone()
    image_rowid = int(row[0])
    _insert_labels(connection, collection_rowid, image_rowid, image)
    return image_rowid


def _insert_labels(
    connection: sqlite3.Connection, collection_rowid: int, image_rowid: int, image: StoredImage
) -> None:
    """Writes an image's tags and attributes to the tables that filters read."""
    tags = [(collection_rowid, tag, image_rowid) for tag in set(image.tags)]
    connection.executemany("INSERT INTO image_tag VALUES (?, ?, ?)", tags)
    _insert_attributes(connection, collection_rowid, image_rowid, 0, image.attributes)


def _insert_records(
    connection: sqlite3.Connection,
    collection_rowid: int,
    records: Sequence[Record],
    owner_images: Mapping[str, LiveImage],
    stored: NDArray[np.float16],
    seq: int,
) -> Rows | None:
    if not records:
        return None
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'record'").fetchone()
    first = (row[0] if row else 0) + 1
    record_rowids = range(first, first + len(records))
    connection.executemany(
        "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?)",
        (
            _record_values(
                collection_rowid, record_rowid, owner_images[record.image_id].image_rowid, record, seq
            )
            for record_rowid, record in zip(record_rowids, records, strict=True)
        ),
    )
    blobs = (row.tobytes() for row in stored.astype("<f2", copy=False))
    connection.executemany(
        "INSERT INTO vector VALUES (?, ?, ?)",
        (
            (record_rowid, blob, faults.of_vector(record_rowid, blob))
            for record_rowid, blob in zip(record_rowids, blobs, strict=True)
        ),
    )
    for record_rowid, record in zip(record_rowids, records, strict=True):
        if record.attributes:
            owner = owner_images[record.image_id].image_rowid
            _insert_attributes(connection, collection_rowid, owner, record_rowid, record.attributes)
    return Rows(
        record_rowid=np.arange(first, first + len(records), dtype=np.int64),
        image_rowid=np.array([owner_images[r.image_id].image_rowid for r in records], np.int64),
        level=np.array([r.level for r in records], np.uint8),
        area=np.array([r.area for r in records], np.int64),
        predicted_iou=np.array([r.predicted_iou for r in records], np.float32),
        stability_score=np.array([r.stability_score for r in records], np.float32),
        created_ms=np.array([owner_images[r.image_id].created_ms for r in records], np.int64),
        vectors=stored.astype(np.float32),
    )


def _record_values(
    collection_rowid: int, record_rowid: int, image: int, record: Record, seq: int
) -> tuple[faults.Value, ...]:
    """A row of the record table."""
    # Adding 0.0 turns -0.0 into the 0.0 that SQLite will return: checksums tell the two apart.
    box = _NO_BOX if record.box is None else [edge + 0.0 for edge in record.box]
    mask = record.mask
    rle = (None, None, None) if mask is None else (mask.height, mask.width, mask.counts)
    attributes = json.dumps(dict(record.attributes)) if record.attributes else None
    level, area = int(record.level), record.area
    iou, stability = record.predicted_iou + 0.0, record.stability_score + 0.0
    return (
        record_rowid, collection_rowid, image, record.record_id, level, *box, area, iou, stability,
        attributes, seq, *rle,
        faults.of_indexed((collection_rowid, record_rowid, image, level, area, iou, stability, seq)),
        faults.of_body(record_rowid, record.record_id, box, attributes),
        faults.of_mask(record_rowid, *rle),
    )  # fmt: skip


def _insert_attributes(
    connection: sqlite3.Connection,
    collection_rowid: int,
    image: int,
    record: int,
    attributes: Mapping[str, str],
) -> None:
    connection.executemany(
        "INSERT INTO attribute VALUES (?, ?, ?, ?, ?)",
        [(collection_rowid, name, value, image, record) for name, value in attributes.items()],
    )


def _remove_images(
    connection: sqlite3.Connection, collection_rowid: int, image_rowids: Sequence[int], seq: int
) -> RowIds:
    if not image_rowids:
        return _NO_ROWS
    statement = f"UPDATE image SET removed = ? WHERE ordinal {LISTED}"  # noqa: S608
    connection.execute(statement, (seq, json_array(image_rowids)))
    return _remove_records(
        connection, collection_rowid, record_rowids_of_images(connection, image_rowids), seq
    )


def _remove_records(
    connection: sqlite3.Connection, collection_rowid: int, record_rowids: RowIds, seq: int
) -> RowIds:
    """Marks live records removed; returns the rowids of those that it changed."""
    if not len(record_rowids):
        return _NO_ROWS
    changed = connection.execute(REMOVE_RECORDS, (seq, json_array(record_rowids.tolist()), collection_rowid))
    return np.array([row[0] for row in changed], np.int64)


def _images_of(connection: sqlite3.Connection, record_rowids: RowIds) -> set[int]:
    if not len(record_rowids):
        return set()
    query = f"SELECT DISTINCT image FROM record WHERE key {LISTED}"  # noqa: S608
    return {row[0] for row in connection.execute(query, (json_array(record_rowids.tolist()),))}


def _empty_images(connection: sqlite3.Connection, image_rowids: Iterable[int]) -> list[int]:
    query = (
        f"SELECT ordinal FROM image WHERE ordinal {LISTED} AND removed IS NULL"  # noqa: S608
        " AND NOT EXISTS (SELECT 1 FROM record WHERE record.image = image.ordinal AND record.removed IS NULL)"
    )
    return [row[0] for row in connection.execute(query, (json_array(image_rowids),))]


def _count_regions(connection: sqlite3.Connection, image_rowids: Iterable[int], seq: int) -> None:
    connection.executemany(
        "UPDATE image SET region_count = (SELECT COUNT(*) FROM record WHERE record.image = image.ordinal"
        " AND record.removed IS NULL AND record.level = ?), changed = iif(added < ?, ?, changed)"
        " WHERE ordinal = ? AND removed IS NULL",
        [(int(Level.REGION), seq, seq, image_rowid) for image_rowid in image_rowids],
    )


def _count(
    connection: sqlite3.Connection, collection_rowid: int, seq: int, *, images: int, records: int
) -> None:
    connection.execute(
        "UPDATE collection SET image_count = image_count + ?, record_count = record_count + ?, changed = ?"
        " WHERE id = ?",
        (images, records, seq, collection_rowid),
    )
