"""Every statement that changes the record store. Each function runs inside the committer's transaction."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.metadata import MetadataLimits
from services.searcher.embedded.reads import images_by_id, keys_of_images, keys_of_records, live_images
from services.searcher.embedded.rows import Change, Keys, Rows
from services.searcher.types import Collection, Level, Record, StoredImage, Upsert, UpsertResult
from services.searcher.updates import ImageUpdate


def next_seq(connection: sqlite3.Connection) -> int:
    """Numbers a write."""
    row = connection.execute("UPDATE state SET seq = seq + 1 RETURNING seq").fetchone()
    return int(row[0])


def create_collection(connection: sqlite3.Connection, collection: Collection) -> int:
    """Adds an empty collection and returns its internal number.

    Raises:
        RegionSearchError: ALREADY_EXISTS.
    """
    codes = collection.codes
    spec = {
        "model": asdict(collection.model),
        "codes": None if codes is None else {**asdict(codes), "method": codes.method.value},
    }
    try:
        row = connection.execute(
            "INSERT INTO collection (name, spec, created_ms) VALUES (?, ?, ?) RETURNING id",
            (collection.name, json.dumps(spec), collection.created_ms),
        ).fetchone()
    except sqlite3.IntegrityError as error:
        raise RegionSearchError(
            Kind.ALREADY_EXISTS, f"there is a collection {collection.name!r} already", field="name"
        ) from error
    return int(row[0])


def require_collection(connection: sqlite3.Connection, collection: int, name: str) -> None:
    """Refuses a write whose collection was dropped while it waited.

    Raises:
        RegionSearchError: NOT_FOUND.
    """
    row = connection.execute(
        "SELECT 1 FROM collection WHERE id = ? AND dropped = 0", (collection,)
    ).fetchone()
    if row is None:
        raise not_found("collection", f"collection {name!r} has been deleted")


def drop_collection(connection: sqlite3.Connection, collection: int, seq: int) -> None:
    """Hides a collection and notes the write that did; `purge` frees its space once no search sees it."""
    connection.execute("UPDATE collection SET dropped = ? WHERE id = ?", (seq, collection))


def store_codec(connection: sqlite3.Connection, collection: int, codec: bytes) -> None:
    """Keeps what makes a collection's binary codes."""
    connection.execute("UPDATE collection SET codec = ? WHERE id = ?", (codec, collection))


def upsert(
    connection: sqlite3.Connection, collection: int, write: Upsert, seq: int
) -> tuple[UpsertResult, Change]:
    """Adds images and records; replaces those of the same ids.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a record whose image is unknown.
    """
    existing = live_images(connection, collection, [image.image_id for image in write.images])
    skipped = tuple(i.image_id for i in write.images if i.image_id in existing) if write.skip_existing else ()
    skip = set(skipped)
    images = [image for image in write.images if image.image_id not in skip]
    kept = [index for index, record in enumerate(write.records) if record.image_id not in skip]
    records = [write.records[index] for index in kept]

    replaced = [existing[image.image_id] for image in images if image.image_id in existing]
    removed = _remove_images(connection, collection, [ordinal for ordinal, _ in replaced], seq)
    homes = _home_images(connection, collection, images, records)
    now = time.time_ns() // 1_000_000
    for image in images:
        created = existing[image.image_id][1] if image.image_id in existing else image.created_ms or now
        homes[image.image_id] = (_insert_image(connection, collection, image, created, seq), created)
    taken = keys_of_records(connection, collection, [record.record_id for record in records])
    bereft = _images_of(connection, taken)
    removed = np.concatenate([removed, _remove_records(connection, collection, taken, seq)])
    stored = write.vectors[np.array(kept, np.intp)].astype(np.float16)
    rows = _insert_records(connection, collection, records, homes, stored, seq)
    _count_regions(connection, bereft | {homes[record.image_id][0] for record in records})
    _count(connection, collection, images=len(images) - len(replaced), records=len(records) - len(removed))
    return UpsertResult(seq, skipped, len(records)), Change(collection, seq, rows, np.sort(removed))


def update_images(
    connection: sqlite3.Connection,
    collection: int,
    updates: Sequence[ImageUpdate],
    limits: MetadataLimits,
) -> tuple[tuple[StoredImage, ...], bool]:
    """Changes what is said about images, in place; returns those that exist, and whether anything changed.

    In place, because a new version of an image would be one of all its records and vectors: pages of an
    earlier search see the new tags too.

    Raises:
        RegionSearchError: ABORTED for an image that is not as it was read; TOO_LARGE.
    """
    known = images_by_id(connection, collection, [update.image_id for update in updates])
    images: list[StoredImage] = []
    changed = False
    for update in updates:
        if update.image_id not in known:
            continue
        ordinal, old = known[update.image_id]
        new = update.apply(old, limits)
        images.append(new)
        if new is old:
            continue
        changed = True
        connection.execute(
            "UPDATE image SET name = ?, tags = ?, attributes = ? WHERE ordinal = ?",
            (new.name, json.dumps(list(new.tags)), json.dumps(dict(new.attributes)), ordinal),
        )
        connection.execute("DELETE FROM image_tag WHERE image = ?", (ordinal,))
        connection.execute("DELETE FROM attribute WHERE image = ? AND record = 0", (ordinal,))
        _insert_labels(connection, collection, ordinal, new)
    return tuple(images), changed


def delete(
    connection: sqlite3.Connection,
    collection: int,
    image_ids: Sequence[str],
    record_keys: Keys,
    seq: int,
    *,
    drop_empty_images: bool,
) -> tuple[int, Change]:
    """Removes images with their records, and single records; returns the number of images that went.

    Args:
        connection: The writing connection.
        collection: The collection's internal number.
        image_ids: Images to remove.
        record_keys: Records to remove.
        seq: Number of this write.
        drop_empty_images: Whether an image whose last record goes is removed too.
    """
    ordinals = [ordinal for ordinal, _ in live_images(connection, collection, image_ids).values()]
    removed = _remove_images(connection, collection, ordinals, seq)
    homes = _images_of(connection, record_keys)
    taken = _remove_records(connection, collection, record_keys, seq)
    emptied: list[int] = []
    if drop_empty_images:
        emptied = _empty_images(connection, homes)
        _remove_images(connection, collection, emptied, seq)
    _count_regions(connection, homes)
    removed = np.concatenate([removed, taken])
    image_count = len(ordinals) + len(emptied)
    _count(connection, collection, images=-image_count, records=-len(removed))
    return image_count, Change(collection, seq, None, np.sort(removed))


def _home_images(
    connection: sqlite3.Connection, collection: int, images: Sequence[StoredImage], records: Sequence[Record]
) -> dict[str, tuple[int, int]]:
    """Ordinal and creation time of the stored images that the records belong to, without those just sent."""
    sent = {image.image_id for image in images}
    homes = live_images(connection, collection, list({r.image_id for r in records} - sent))
    for index, record in enumerate(records):
        if record.image_id not in sent and record.image_id not in homes:
            raise invalid(
                f"records[{index}].image_id",
                f"record {record.record_id!r} belongs to image {record.image_id!r}, which is neither in this "
                "request nor in the collection: send the image along",
            )
    return homes


def _insert_image(
    connection: sqlite3.Connection, collection: int, image: StoredImage, created_ms: int, seq: int
) -> int:
    row = connection.execute(
        "INSERT INTO image (collection, image_id, name, width, height, content_type, size_bytes, tags,"
        " attributes, created_ms, region_count, added)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?) RETURNING ordinal",
        (
            collection, image.image_id, image.name, image.width, image.height, image.content_type,
            image.size_bytes, json.dumps(list(image.tags)), json.dumps(dict(image.attributes)), created_ms,
            seq,
        ),
    ).fetchone()  # fmt: skip
    ordinal = int(row[0])
    _insert_labels(connection, collection, ordinal, image)
    return ordinal


def _insert_labels(connection: sqlite3.Connection, collection: int, ordinal: int, image: StoredImage) -> None:
    """What filters ask for of an image: its tags and attributes."""
    tags = [(collection, tag, ordinal) for tag in set(image.tags)]
    connection.executemany("INSERT INTO image_tag VALUES (?, ?, ?)", tags)
    _insert_attributes(connection, collection, ordinal, 0, image.attributes)


def _insert_records(
    connection: sqlite3.Connection,
    collection: int,
    records: Sequence[Record],
    homes: Mapping[str, tuple[int, int]],
    stored: NDArray[np.float16],
    seq: int,
) -> Rows | None:
    if not records:
        return None
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'record'").fetchone()
    first = (row[0] if row else 0) + 1
    keys = range(first, first + len(records))
    connection.executemany(
        "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?)",
        (
            (
                key, collection, homes[r.image_id][0], r.record_id, int(r.level), *(r.box or (None,) * 4),
                r.area, r.predicted_iou, r.stability_score, json.dumps(dict(r.attributes)) if r.attributes
                else None, seq, *((r.mask.height, r.mask.width, r.mask.counts) if r.mask else (None, None,
                None)),
            )
            for key, r in zip(keys, records, strict=True)
        ),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO vector VALUES (?, ?)",
        ((key, row.tobytes()) for key, row in zip(keys, stored.astype("<f2", copy=False), strict=True)),
    )
    for key, record in zip(keys, records, strict=True):
        if record.attributes:
            home = homes[record.image_id][0]
            _insert_attributes(connection, collection, home, key, record.attributes)
    return Rows(
        key=np.arange(first, first + len(records), dtype=np.int64),
        image=np.array([homes[r.image_id][0] for r in records], np.int64),
        level=np.array([r.level for r in records], np.uint8),
        area=np.array([r.area for r in records], np.int64),
        predicted_iou=np.array([r.predicted_iou for r in records], np.float32),
        stability_score=np.array([r.stability_score for r in records], np.float32),
        created_ms=np.array([homes[r.image_id][1] for r in records], np.int64),
        vectors=stored.astype(np.float32),
    )


def _insert_attributes(
    connection: sqlite3.Connection, collection: int, image: int, record: int, attributes: Mapping[str, str]
) -> None:
    connection.executemany(
        "INSERT INTO attribute VALUES (?, ?, ?, ?, ?)",
        [(collection, name, value, image, record) for name, value in attributes.items()],
    )


def _remove_images(
    connection: sqlite3.Connection, collection: int, ordinals: Sequence[int], seq: int
) -> Keys:
    connection.executemany("UPDATE image SET removed = ? WHERE ordinal = ?", [(seq, o) for o in ordinals])
    return _remove_records(connection, collection, keys_of_images(connection, ordinals), seq)


def _remove_records(connection: sqlite3.Connection, collection: int, keys: Keys, seq: int) -> Keys:
    """Marks live records removed; returns the keys of those that it changed."""
    changed = [
        key
        for key in keys.tolist()
        if connection.execute(
            "UPDATE record SET removed = ? WHERE key = ? AND collection = ? AND removed IS NULL",
            (seq, key, collection),
        ).rowcount
    ]
    return np.array(changed, np.int64)


def _images_of(connection: sqlite3.Connection, keys: Keys) -> set[int]:
    found: set[int] = set()
    for key in keys.tolist():
        found.update(row[0] for row in connection.execute("SELECT image FROM record WHERE key = ?", (key,)))
    return found


def _empty_images(connection: sqlite3.Connection, ordinals: Iterable[int]) -> list[int]:
    query = (
        "SELECT ordinal FROM image WHERE ordinal = ? AND removed IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM record WHERE record.image = image.ordinal AND record.removed IS NULL)"
    )
    return [row[0] for ordinal in ordinals for row in connection.execute(query, (ordinal,))]


def _count_regions(connection: sqlite3.Connection, ordinals: Iterable[int]) -> None:
    connection.executemany(
        "UPDATE image SET region_count = (SELECT COUNT(*) FROM record WHERE record.image = image.ordinal"
        " AND record.removed IS NULL AND record.level = ?) WHERE ordinal = ? AND removed IS NULL",
        [(int(Level.REGION), ordinal) for ordinal in ordinals],
    )


def _count(connection: sqlite3.Connection, collection: int, *, images: int, records: int) -> None:
    connection.execute(
        "UPDATE collection SET image_count = image_count + ?, record_count = record_count + ? WHERE id = ?",
        (images, records, collection),
    )
