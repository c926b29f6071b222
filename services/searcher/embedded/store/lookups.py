"""From ids, tags and attributes to rowids, and back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from services.searcher.conditions import ValueTest
from services.searcher.embedded.rows import HighestRowids, RowIds
from services.searcher.geo import inside

IMAGE_VALUES = (
    "collection, image_id, name, width, height, content_type, size_bytes, tags, attributes, created_ms, place"
)
"""Columns of an image that its checksum covers, in its order."""

LISTED = "IN (SELECT value FROM json_each(?))"
"""A condition that takes a `json_array` or `json_names` as its one parameter."""


class LiveImage(NamedTuple):
    """The values of a stored image that a write needs."""

    image_rowid: int
    created_ms: int
    place: int


def live_images(
    connection: sqlite3.Connection, collection_rowid: int, image_ids: Sequence[str]
) -> dict[str, LiveImage]:
    """The images that exist, by id."""
    rows = connection.execute(
        f"SELECT image_id, ordinal, created_ms, place FROM image WHERE collection = ? AND image_id {LISTED}"  # noqa: S608
        " AND removed IS NULL",
        (collection_rowid, json_names(image_ids)),
    )
    return {image_id: LiveImage(*values) for image_id, *values in rows}


def record_rowids_of_images(connection: sqlite3.Connection, image_rowids: Sequence[int]) -> RowIds:
    """Rowids of all live records of images."""
    rows = connection.execute(
        f"SELECT key FROM record WHERE image {LISTED} AND removed IS NULL",  # noqa: S608
        (json_array(image_rowids),),
    )
    return _integers(rows)


def rowids_of_records(
    connection: sqlite3.Connection, collection_rowid: int, record_ids: Sequence[str]
) -> RowIds:
    """Rowids of the records that exist."""
    rows = connection.execute(
        f"SELECT key FROM record WHERE collection = ? AND record_id {LISTED} AND removed IS NULL",  # noqa: S608
        (collection_rowid, json_names(record_ids)),
    )
    return _integers(rows)


def every_version(
    connection: sqlite3.Connection, table: str, collection_rowid: int, ids: Sequence[str], since: int
) -> RowIds:
    """Row numbers of all versions of images or records that some state from write `since` on can show.

    Args:
        connection: A reading connection.
        table: "image" or "record".
        collection_rowid: The collection's rowid.
        ids: Public ids.
        since: Versions removed up to this write are left out.
    """
    number, name = {"image": ("ordinal", "image_id"), "record": ("key", "record_id")}[table]
    listed = json_names(ids)
    rows = connection.execute(
        f"SELECT {number} FROM {table} WHERE collection = ? AND {name} {LISTED} AND removed IS NULL"  # noqa: S608
        f" UNION ALL SELECT {number} FROM {table} WHERE removed > ? AND collection = ? AND {name} {LISTED}",
        (collection_rowid, listed, since, collection_rowid, listed),
    )
    return _integers(rows)


def highest_rowids(connection: sqlite3.Connection) -> HighestRowids:
    """The highest rowids so far; every later write gets higher ones."""
    found = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
    return HighestRowids(found.get("image", 0), found.get("record", 0))


def tagged_images(
    connection: sqlite3.Connection, collection_rowid: int, tags: Sequence[str], since: int = 0
) -> RowIds:
    """Rowids above `since` of the images, of any version, with one of the tags, ascending."""
    rows = connection.execute(
        f"SELECT image FROM image_tag WHERE collection = ? AND tag {LISTED} AND image > ?",  # noqa: S608
        (collection_rowid, json_names(tags), since),
    )
    return np.unique(_integers(rows))


def attribute_owners(
    connection: sqlite3.Connection, collection_rowid: int, name: str, test: ValueTest, since: HighestRowids
) -> tuple[RowIds, RowIds, RowIds]:
    """The owners of an attribute: images and records whose value passes, and records whose value does not.

    Only images and records later than `since`; of the last kind only what matters: records of images with
    the value, and perhaps further ones.
    """
    if test.area is not None:
        rows = connection.execute(
            "SELECT DISTINCT value FROM attribute WHERE collection = ? AND name = ?"
            " AND (image > ? OR record > ?)",
            (collection_rowid, name, since.image, since.record),
        )
        test = ValueTest(values=tuple(inside([value for (value,) in rows], test.area)))
        if not test.values:
            return _integers(()), _integers(()), _integers(())
    passes, parameters = _passes(connection, test)
    found = connection.execute(
        f"SELECT image, record FROM attribute WHERE collection = ? AND name = ? AND image > ? AND {passes}",  # noqa: S608
        (collection_rowid, name, since.image, *parameters),
    ).fetchall()
    images = _integers((image,) for image, record_rowid in found if not record_rowid)
    same = _integers((record_rowid,) for _, record_rowid in found if record_rowid)
    others = (
        f"SELECT record FROM attribute WHERE image {LISTED} AND record != 0"  # noqa: S608
        f" AND name = ? AND NOT ({passes})"
    )
    listed = json.dumps(images.tolist())
    other = (
        _integers(connection.execute(others, (listed, name, *parameters))) if len(images) else _integers(())
    )
    late = connection.execute(  # records that came to older images
        f"SELECT record, {passes} FROM attribute WHERE name = ? AND record > ? AND image IN"  # noqa: S608
        " (SELECT image FROM record WHERE key > ? AND image <= ? AND collection = ?)",
        (*parameters, name, since.record, since.record, since.image, collection_rowid),
    ).fetchall()
    same = np.concatenate([same, _integers((record_rowid,) for record_rowid, its in late if its)])
    other = np.concatenate([other, _integers((record_rowid,) for record_rowid, its in late if not its)])
    return np.unique(images), np.unique(same), np.unique(other)


def _passes(connection: sqlite3.Connection, test: ValueTest) -> tuple[str, tuple[str, ...]]:
    """A test of the column `value` as an expression that is 0 or 1, and its parameters."""
    if test.values:
        return f"value {LISTED}", (json_names(test.values),)
    if test.prefix:
        return "(value >= ? AND substr(value, 1, length(?)) = ?)", (test.prefix,) * 3
    if test.number is None and test.time is None:
        return "1", ()
    connection.create_function("passes", 1, lambda value: int(test.passes(value)), deterministic=True)
    return "passes(value)", ()


def public_ids(connection: sqlite3.Connection, record_rowids: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Image id and record id by record rowid."""
    rows = connection.execute(
        f"SELECT r.key, i.image_id, r.record_id FROM record r JOIN image i ON i.ordinal = r.image"  # noqa: S608
        f" WHERE r.key {LISTED}",
        (json_array(record_rowids),),
    )
    return {record_rowid: (image_id, record_id) for record_rowid, image_id, record_id in rows}


def record_rowids_in_order(
    connection: sqlite3.Connection, collection_rowid: int, first: int, last: int
) -> RowIds:
    """Rowids from `first` to `last` in the order of hits with equal scores: by level, image id, record id."""
    rows = connection.execute(
        "SELECT r.key FROM record r JOIN image i ON i.ordinal = r.image WHERE r.key BETWEEN ? AND ?"
        " AND r.collection = ? ORDER BY r.level, i.image_id, r.record_id",
        (first, last, collection_rowid),
    )
    return _integers(rows)


def place_in_order(connection: sqlite3.Connection, record_rowid: int) -> tuple[int, str, str] | None:
    """Level, image id and record id of a record; None if it has been vacuumed."""
    row: tuple[int, str, str] | None = connection.execute(
        "SELECT r.level, i.image_id, r.record_id FROM record r JOIN image i ON i.ordinal = r.image"
        " WHERE r.key = ?",
        (record_rowid,),
    ).fetchone()
    return row


def record_places(
    connection: sqlite3.Connection, record_rowids: Iterable[int]
) -> list[tuple[int, int, int, str]]:
    """Rowid, image's rowid, level and record id of records, in any order."""
    return connection.execute(
        f"SELECT key, image, level, record_id FROM record WHERE key {LISTED}",  # noqa: S608
        (json_array(record_rowids),),
    ).fetchall()


def images_newest_first(
    connection: sqlite3.Connection,
    collection_rowid: int,
    seq: int | None,
    after: tuple[int, str] | None,
    *,
    inclusive: bool = False,
    ascending: bool = False,
) -> Iterator[tuple[int, tuple[int, str]]]:
    """Rowids of images, newest first, each with its place: a number that orders them, and the image's id.

    Args:
        connection: A reading connection.
        collection_rowid: The collection's rowid.
        seq: Images that were removed after this write are among them; None: none that were removed.
        after: The place to begin behind.
        inclusive: Whether to begin with this place.
        ascending: Whether the oldest comes first.
    """
    sign, direction = (">", "ASC") if ascending else ("<", "DESC")
    behind = "" if after is None else f" AND (place, image_id) {sign}{'=' if inclusive else ''} (?, ?)"
    query = f"SELECT ordinal, place, image_id FROM image WHERE collection = ?{behind} AND removed"  # noqa: S608
    live = f"{query} IS NULL"
    parameters: tuple[object, ...] = (collection_rowid, *(after or ()))
    if seq is not None:
        live, parameters = f"{live} UNION ALL {query} > ?", (*parameters, *parameters, seq)
    rows = connection.execute(f"{live} ORDER BY place {direction}, image_id {direction}", parameters)
    return ((ordinal, (place, image_id)) for ordinal, place, image_id in rows)


def image_values(connection: sqlite3.Connection, collection_rowid: int, attribute: str) -> dict[int, str]:
    """The values of an attribute by rowid of image, of any version; with "" the names."""
    if attribute:
        query = "SELECT image, value FROM attribute WHERE collection = ? AND name = ? AND record = 0"
        return dict(connection.execute(query, (collection_rowid, attribute)))
    query = "SELECT ordinal, name FROM image WHERE collection = ? AND name != ''"
    return dict(connection.execute(query, (collection_rowid,)))


def images_by_tag(connection: sqlite3.Connection, collection_rowid: int) -> Iterator[tuple[str, RowIds]]:
    """Each tag with the rowids of images, of any version, that have it."""
    rows = connection.execute(
        "SELECT tag, group_concat(image) FROM image_tag WHERE collection = ? GROUP BY tag",
        (collection_rowid,),
    )
    return ((tag, _parsed(images)) for tag, images in rows)


def images_by_value(
    connection: sqlite3.Connection, collection_rowid: int, name: str
) -> Iterator[tuple[str, RowIds]]:
    """Each value of an attribute with the rowids of images, of any version, that have it."""
    rows = connection.execute(
        "SELECT value, group_concat(image) FROM attribute WHERE collection = ? AND name = ? AND record = 0"
        " GROUP BY value",
        (collection_rowid, name),
    )
    return ((value, _parsed(images)) for value, images in rows)


def records_by_value(
    connection: sqlite3.Connection, collection_rowid: int, name: str
) -> list[tuple[str, RowIds]]:
    """Each value of an attribute with the rowids of records, of any version, that have it themselves."""
    rows = connection.execute(
        "SELECT value, group_concat(record) FROM attribute WHERE collection = ? AND name = ? AND record != 0"
        " GROUP BY value",
        (collection_rowid, name),
    )
    return [(value, _parsed(records)) for value, records in rows]


def json_array(values: Iterable[int]) -> str:
    """For `LISTED`."""
    return json.dumps(list(values))


def json_names(names: Iterable[str]) -> str:
    """For `LISTED`. SQLite ends JSON's strings at a NUL; as no stored name has one, such a name is none."""
    return json.dumps([name for name in names if "\0" not in name])


def _integers(rows: Iterable[tuple[int]]) -> RowIds:
    return np.fromiter((row[0] for row in rows), np.int64)


def _parsed(listed: str) -> RowIds:
    """Rowids that SQLite has put into one text."""
    return np.fromstring(listed, np.int64, sep=",")
