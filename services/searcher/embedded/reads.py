"""Every statement that only reads the record store."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.rows import Keys
from services.searcher.room import Room
from services.searcher.types import (
    CodeMethod,
    CodeSpec,
    Collection,
    Level,
    ModelIdentity,
    Record,
    RleMask,
    StoredImage,
)

_IMAGE = (
    "i.image_id, i.name, i.width, i.height, i.content_type, i.size_bytes, i.tags, i.attributes, i.created_ms,"
    " i.region_count"
)
_RECORD = (
    "r.record_id, i.image_id, r.level, r.x_min, r.y_min, r.x_max, r.y_max, r.area, r.predicted_iou,"
    " r.stability_score, r.attributes"
)
_MASK = "r.mask_height, r.mask_width, r.mask"
_LISTED = "IN (SELECT value FROM json_each(?))"


def last_seq(connection: sqlite3.Connection) -> int:
    """Number of the last write."""
    return int(connection.execute("SELECT seq FROM state").fetchone()[0])


def collections(connection: sqlite3.Connection) -> list[tuple[int, Collection, bytes | None]]:
    """Internal number, description and codec of every collection, by name."""
    rows = connection.execute(
        "SELECT id, name, spec, created_ms, image_count, record_count, codec FROM collection"
        " WHERE dropped = 0 ORDER BY name"
    )
    return [(row[0], _collection(*row[1:6]), row[6]) for row in rows]


def counts(connection: sqlite3.Connection, collection: int) -> tuple[int, int]:
    """Numbers of images and records."""
    row = connection.execute(
        "SELECT image_count, record_count FROM collection WHERE id = ?", (collection,)
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def live_images(
    connection: sqlite3.Connection, collection: int, image_ids: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Ordinal and creation time of those of the images that exist."""
    rows = connection.execute(
        f"SELECT image_id, ordinal, created_ms FROM image WHERE collection = ? AND image_id {_LISTED}"  # noqa: S608
        " AND removed IS NULL",
        (collection, _names(image_ids)),
    )
    return {image_id: (ordinal, created_ms) for image_id, ordinal, created_ms in rows}


def images_by_id(
    connection: sqlite3.Connection, collection: int, image_ids: Sequence[str]
) -> dict[str, tuple[int, StoredImage]]:
    """Ordinal and description of those of the images that exist."""
    rows = connection.execute(
        f"SELECT i.ordinal, {_IMAGE} FROM image i WHERE i.collection = ? AND i.image_id {_LISTED}"  # noqa: S608
        " AND i.removed IS NULL",
        (collection, _names(image_ids)),
    )
    return {row[1]: (row[0], _image(row[1:])) for row in rows}


def keys_of_images(connection: sqlite3.Connection, ordinals: Sequence[int]) -> Keys:
    """Keys of all live records of images."""
    rows = connection.execute(
        f"SELECT key FROM record WHERE image {_LISTED} AND removed IS NULL",  # noqa: S608
        (json.dumps(list(ordinals)),),
    )
    return _integers(rows)


def keys_of_records(connection: sqlite3.Connection, collection: int, record_ids: Sequence[str]) -> Keys:
    """Keys of those of the records that exist."""
    rows = connection.execute(
        f"SELECT key FROM record WHERE collection = ? AND record_id {_LISTED} AND removed IS NULL",  # noqa: S608
        (collection, _names(record_ids)),
    )
    return _integers(rows)


def every_version(
    connection: sqlite3.Connection, table: str, collection: int, ids: Sequence[str], since: int
) -> Keys:
    """Row numbers of all versions of images or records that some state from write `since` on can show.

    Args:
        connection: A reading connection.
        table: "image" or "record".
        collection: The collection's internal number.
        ids: Public ids.
        since: Versions removed up to this write are left out.
    """
    number, name = {"image": ("ordinal", "image_id"), "record": ("key", "record_id")}[table]
    listed = _names(ids)
    rows = connection.execute(
        f"SELECT {number} FROM {table} WHERE collection = ? AND {name} {_LISTED} AND removed IS NULL"  # noqa: S608
        f" UNION ALL SELECT {number} FROM {table} WHERE removed > ? AND collection = ? AND {name} {_LISTED}",
        (collection, listed, since, collection, listed),
    )
    return _integers(rows)


def tagged_images(connection: sqlite3.Connection, collection: int, tags: Sequence[str]) -> Keys:
    """Ordinals of the images, of any version, with one of the tags."""
    rows = connection.execute(
        f"SELECT image FROM image_tag WHERE collection = ? AND tag {_LISTED}",  # noqa: S608
        (collection, _names(tags)),
    )
    return _integers(rows)


def attribute_owners(
    connection: sqlite3.Connection, collection: int, name: str, value: str
) -> tuple[Keys, Keys, Keys]:
    """Who has an attribute: images with this value, records with this value, records with another one."""
    query = "SELECT {0} FROM attribute WHERE collection = ? AND name = ? AND value {1} ? AND record {2} 0"
    wanted = (collection, name, value)
    images = _integers(connection.execute(query.format("image", "=", "="), wanted))
    same = _integers(connection.execute(query.format("record", "=", "!="), wanted))
    other = _integers(connection.execute(query.format("record", "!=", "!="), wanted))
    return images, same, other


def public_ids(connection: sqlite3.Connection, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Image id and record id by key."""
    rows = connection.execute(
        f"SELECT r.key, i.image_id, r.record_id FROM record r JOIN image i ON i.ordinal = r.image"  # noqa: S608
        f" WHERE r.key {_LISTED}",
        (json.dumps(list(keys)),),
    )
    return {key: (image_id, record_id) for key, image_id, record_id in rows}


def records(
    connection: sqlite3.Connection, keys: Iterable[int], room: Room, *, masks: bool
) -> dict[int, Record]:
    """Records by key; takes room for each."""
    rows = connection.execute(
        f"SELECT r.key, {_RECORD}{', ' + _MASK if masks else ''} FROM record r"  # noqa: S608
        f" JOIN image i ON i.ordinal = r.image WHERE r.key {_LISTED}",
        (json.dumps(list(keys)),),
    )
    found: dict[int, Record] = {}
    for row in rows:
        found[row[0]] = _record(row[1:])
        room.take_record(found[row[0]])
    return found


def described(
    connection: sqlite3.Connection, keys: Iterable[int], room: Room, *, masks: bool
) -> dict[int, tuple[Record, StoredImage]]:
    """Record and image by key; takes room for both of each."""
    rows = connection.execute(
        f"SELECT r.key, {_IMAGE}, {_RECORD}{', ' + _MASK if masks else ''} FROM record r"  # noqa: S608
        f" JOIN image i ON i.ordinal = r.image WHERE r.key {_LISTED}",
        (json.dumps(list(keys)),),
    )
    found: dict[int, tuple[Record, StoredImage]] = {}
    for row in rows:
        record, image = _record(row[11:]), _image(row[1:11])
        room.take_record(record)
        room.take_image(image)
        found[row[0]] = record, image
    return found


def images(connection: sqlite3.Connection, ordinals: Iterable[int], room: Room) -> list[StoredImage]:
    """Live images by ordinal, in that order; takes room for each."""
    rows = connection.execute(
        f"SELECT {_IMAGE} FROM image i WHERE i.ordinal {_LISTED} ORDER BY i.ordinal",  # noqa: S608
        (json.dumps(list(ordinals)),),
    )
    return _images(rows, room)


def in_reading_order(connection: sqlite3.Connection, keys: Iterable[int]) -> list[tuple[int, int]]:
    """Key and image ordinal of records: by image, image level first, then in the order of writing."""
    return connection.execute(
        f"SELECT key, image FROM record WHERE key {_LISTED} ORDER BY image, level, key",  # noqa: S608
        (json.dumps(list(keys)),),
    ).fetchall()


def vectors(connection: sqlite3.Connection, keys: Sequence[int], dimension: int) -> NDArray[np.float32]:
    """Stored vectors in the order of the keys, shape (keys, dimension)."""
    query = "SELECT value FROM vector WHERE key = ?"
    found = b"".join(connection.execute(query, (key,)).fetchone()[0] for key in keys)
    return np.frombuffer(found, "<f2").reshape(len(keys), dimension).astype(np.float32)


def recent_images(
    connection: sqlite3.Connection, collection: int, limit: int, after: tuple[int, str] | None, room: Room
) -> tuple[list[StoredImage], bool]:
    """Images, newest first, from behind the place (created_ms, image_id), and whether there are more.

    Takes room for each of them.
    """
    place = " AND (i.created_ms, i.image_id) < (?, ?)" if after else ""
    rows = connection.execute(
        f"SELECT {_IMAGE} FROM image i WHERE i.collection = ? AND i.removed IS NULL{place}"  # noqa: S608
        " ORDER BY i.created_ms DESC, i.image_id DESC LIMIT ?",
        (collection, *(after or ()), limit + 1),
    )
    return _images(itertools.islice(rows, limit), room), next(rows, None) is not None


def _names(names: Iterable[str]) -> str:
    """For `_LISTED`. SQLite ends JSON's strings at a NUL; as no stored name has one, such a name is none."""
    return json.dumps([name for name in names if "\0" not in name])


def _integers(rows: Iterable[tuple[int]]) -> Keys:
    return np.array([row[0] for row in rows], np.int64)


def _collection(name: str, spec: str, created_ms: int, image_count: int, record_count: int) -> Collection:
    fields = json.loads(spec)
    codes = fields["codes"]
    return Collection(
        name=name,
        model=ModelIdentity(**fields["model"]),
        codes=CodeSpec(**{**codes, "method": CodeMethod(codes["method"])}) if codes else None,
        created_ms=created_ms,
        image_count=image_count,
        record_count=record_count,
    )


def _images(rows: Iterable[Sequence[Any]], room: Room) -> list[StoredImage]:
    found: list[StoredImage] = []
    for row in rows:
        found.append(_image(row))
        room.take_image(found[-1])
    return found


def _image(row: Sequence[Any]) -> StoredImage:
    tags, attributes = json.loads(row[6]), json.loads(row[7])
    image_id, name, width, height, content_type, size_bytes = row[:6]
    return StoredImage(
        image_id, name, width, height, content_type, size_bytes, tuple(tags), attributes, row[8], row[9]
    )


def _record(row: Sequence[Any]) -> Record:
    box = None if row[3] is None else (row[3], row[4], row[5], row[6])
    mask = RleMask(row[11], row[12], row[13]) if len(row) > 11 and row[13] is not None else None
    attributes = json.loads(row[10]) if row[10] else {}
    return Record(row[0], row[1], Level(row[2]), box, mask, row[7], row[8], row[9], attributes)
