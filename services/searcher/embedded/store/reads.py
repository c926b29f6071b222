"""Every statement that only reads the record store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from services.searcher.embedded.store import faults
from services.searcher.embedded.store.lookups import LISTED, json_array, json_names
from services.searcher.metrics import DAMAGED_ROWS
from services.searcher.response_budget import UNLIMITED, ResponseBudget
from services.searcher.types import Collection, ImagePlace, Level, Record, RleMask, StoredImage, Upsert

IMAGE_VALUES = (
    "collection, image_id, name, width, height, content_type, size_bytes, tags, attributes, created_ms, place"
)
"""Columns of an image that its checksum covers, in its order."""
_IMAGE = f"i.checksum, {', '.join(f'i.{name}' for name in IMAGE_VALUES.split(', '))}, i.region_count"
_RECORD = (
    "r.checksum, r.body_checksum, r.collection, r.key, r.image, r.level, r.area, r.predicted_iou,"
    " r.stability_score, r.added, r.record_id, r.x_min, r.y_min, r.x_max, r.y_max, r.attributes, i.image_id"
)
_MASK = "r.mask_checksum, r.mask_height, r.mask_width, r.mask"
_EMPTY: dict[type, str] = {list: "[]", dict: "{}"}
_COPIED_ROWS = 2000  # about, of one write
_NO_MASK = "NULL, NULL, NULL, NULL"
_log = structlog.get_logger(__name__)


def last_seq(connection: sqlite3.Connection) -> int:
    """Number of the last write."""
    return int(connection.execute("SELECT seq FROM state").fetchone()[0])


def epoch(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """The number of restores, and the key that signs page tokens."""
    row = connection.execute("SELECT epoch, token_key FROM state").fetchone()
    return int(row[0]), bytes(row[1])


def is_replica(connection: sqlite3.Connection) -> bool:
    """Whether the store is a copy of another searcher's."""
    return bool(connection.execute("SELECT replica FROM state").fetchone()[0])


def vacuumed(connection: sqlite3.Connection) -> int:
    """The last write whose removed rows may have been deleted."""
    return int(connection.execute("SELECT vacuumed FROM state").fetchone()[0])


def collections(connection: sqlite3.Connection) -> list[tuple[int, Collection, bytes | None]]:
    """Rowid, description and codec of every collection, by name.

    Raises:
        DamagedRowError: One of them is not what was written.
    """
    rows = connection.execute(
        "SELECT id, name, spec, created_ms, image_count, record_count, codec, checksum FROM collection"
        " WHERE dropped = 0 ORDER BY name"
    )
    found: list[tuple[int, Collection, bytes | None]] = []
    for number, name, spec, created_ms, image_count, record_count, codec, checksum in rows:
        what = f"collection {name!r}"
        faults.require(checksum, faults.of_values(name, spec, created_ms, codec), what)
        try:
            collection = Collection.from_spec(name, json.loads(spec), created_ms, image_count, record_count)
        except (KeyError, TypeError, ValueError) as error:
            raise faults.DamagedRowError(f"the description of {what} cannot be decoded") from error
        found.append((number, collection, codec))
    return found


def differing_images(connection: sqlite3.Connection, one: int, other: int, limit: int) -> list[str]:
    """Ids of images that one of two collections lacks, or that are described differently; at most `limit`."""
    columns = "image_id, name, tags, attributes, created_ms, region_count"
    live = f"SELECT {columns} FROM image WHERE collection = ? AND removed IS NULL"  # noqa: S608
    found: dict[str, None] = {}
    for pair in ((one, other), (other, one)):
        for image_id, *described in connection.execute(f"{live} EXCEPT {live}", pair):
            # Attributes of one image are not always written in the same order.
            query = f"{live} AND image_id = ?"
            twin = connection.execute(query, (pair[1], image_id)).fetchone()
            if twin is None or _description(described) != _description(twin[1:]):
                found[image_id] = None
            if len(found) == limit:
                return list(found)
    return list(found)


def _description(values: Sequence[Any]) -> tuple[Any, ...]:
    name, tags, attributes, created_ms, region_count = values
    return name, json.loads(tags), json.loads(attributes), created_ms, region_count


def counts(connection: sqlite3.Connection, collection_rowid: int) -> tuple[int, int]:
    """Numbers of images and records."""
    row = connection.execute(
        "SELECT image_count, record_count FROM collection WHERE id = ?", (collection_rowid,)
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def images_by_id(
    connection: sqlite3.Connection, collection_rowid: int, image_ids: Sequence[str]
) -> dict[str, tuple[int, StoredImage]]:
    """Rowid and description of the images that exist."""
    rows = connection.execute(
        f"SELECT i.ordinal, {_IMAGE} FROM image i WHERE i.collection = ? AND i.image_id {LISTED}"  # noqa: S608
        " AND i.removed IS NULL",
        (collection_rowid, json_names(image_ids)),
    )
    return {image.image_id: (row[0], image) for row in rows for image in [_image(row[1:])]}


def records(
    connection: sqlite3.Connection, record_rowids: Iterable[int], budget: ResponseBudget, *, masks: bool
) -> dict[int, Record]:
    """Records by rowid; deducts each from `budget`.

    Raises:
        DamagedRowError: One of them is not what was written.
    """
    rows = connection.execute(
        f"SELECT {_RECORD}, {_MASK if masks else _NO_MASK} FROM record r"  # noqa: S608
        f" JOIN image i ON i.ordinal = r.image WHERE r.key {LISTED}",
        (json_array(record_rowids),),
    )
    found: dict[int, Record] = {}
    for row in rows:
        found[row[3]] = _record(row)
        budget.take_record(found[row[3]])
    return found


@dataclass(frozen=True, slots=True)
class HitRow:
    """A record and its image as they are stored, not yet checked."""

    values: Sequence[Any]

    @property
    def key(self) -> int:
        """The record's rowid."""
        return int(self.values[3])

    @property
    def public_ids(self) -> tuple[str, str]:
        """Image id and record id."""
        return self.values[16], self.values[10]

    def described(self) -> tuple[Record, StoredImage] | None:
        """Both; None where they are damaged, which is reported: one damaged row does not hide the others."""
        try:
            return _record(self.values[:21]), _image(self.values[21:])
        except faults.DamagedRowError as error:
            report_damage(error)
            return None


def hit_rows(
    connection: sqlite3.Connection, record_rowids: Iterable[int], *, masks: bool
) -> Iterator[HitRow]:
    """Records with their images, in the given order."""
    rows = connection.execute(
        f"SELECT {_RECORD}, {_MASK if masks else _NO_MASK}, {_IMAGE} FROM json_each(?) k"  # noqa: S608
        " CROSS JOIN record r ON r.key = k.value CROSS JOIN image i ON i.ordinal = r.image ORDER BY k.key",
        (json_array(record_rowids),),
    )
    return map(HitRow, rows)


def images(
    connection: sqlite3.Connection, image_rowids: Iterable[int], budget: ResponseBudget
) -> list[StoredImage]:
    """Live images by rowid, in that order; deducts each from `budget`.

    Raises:
        DamagedRowError: One of them is not what was written.
    """
    rows = connection.execute(
        f"SELECT {_IMAGE} FROM image i WHERE i.ordinal {LISTED} ORDER BY i.ordinal",  # noqa: S608
        (json_array(image_rowids),),
    )
    found: list[StoredImage] = []
    for row in rows:
        found.append(_image(row))
        budget.take_image(found[-1])
    return found


def in_reading_order(connection: sqlite3.Connection, record_rowids: Iterable[int]) -> list[tuple[int, int]]:
    """Rowids of records and their images: by image, image level first, then in the order of writing."""
    return connection.execute(
        f"SELECT key, image FROM record WHERE key {LISTED} ORDER BY image, level, key",  # noqa: S608
        (json_array(record_rowids),),
    ).fetchall()


def vectors(
    connection: sqlite3.Connection, record_rowids: Sequence[int], dimension: int
) -> NDArray[np.float32]:
    """Stored vectors in the order of the rowids, shape (rowids, dimension).

    Raises:
        DamagedRowError: One of them is not what was written.
    """
    query = "SELECT value, checksum FROM vector WHERE key = ?"
    found: list[bytes] = []
    for record_rowid in record_rowids:
        value, checksum = connection.execute(query, (record_rowid,)).fetchone() or (b"", None)
        if len(value) != 2 * dimension:
            raise faults.DamagedRowError(
                f"the vector of record {record_rowid} is missing or has the wrong length"
            )
        faults.require(
            checksum, faults.of_vector(record_rowid, value), f"the vector of record {record_rowid}"
        )
        found.append(value)
    return np.frombuffer(b"".join(found), "<f2").reshape(len(record_rowids), dimension).astype(np.float32)


def everything(connection: sqlite3.Connection, collection_rowid: int, dimension: int) -> Iterator[Upsert]:
    """A collection as writes that make it again.

    Raises:
        DamagedRowError: A row is not what was written.
    """
    rows = connection.execute(
        "SELECT ordinal, place, region_count FROM image WHERE collection = ? AND removed IS NULL"
        " ORDER BY ordinal",
        (collection_rowid,),
    ).fetchall()
    start = 0
    while start < len(rows):
        stop, count = start, 0
        while stop < len(rows) and (stop == start or count < _COPIED_ROWS):
            count += rows[stop][2] + 1
            stop += 1
        part = rows[start:stop]
        found = images(connection, [row[0] for row in part], UNLIMITED)
        query = f"SELECT key FROM record WHERE image {LISTED} AND removed IS NULL ORDER BY key"  # noqa: S608
        keys = [row[0] for row in connection.execute(query, (json_array(row[0] for row in part),))]
        by_key = records(connection, keys, UNLIMITED, masks=True)
        yield Upsert(
            found,
            [by_key[key] for key in keys],
            vectors(connection, keys, dimension),
            places={image.image_id: row[1] for image, row in zip(found, part, strict=True)},
        )
        start = stop


def images_in_order(
    connection: sqlite3.Connection,
    walk: Iterable[tuple[int, ImagePlace]],
    limit: int,
    budget: ResponseBudget,
) -> tuple[list[StoredImage], ImagePlace | None]:
    """The first images of a walk, given by rowids and places, and the place where more follow; or None.

    A page ends early where the next image would need more than `budget`. Damaged images are reported and left
    out: one of them does not hide the others.

    Raises:
        RegionSearchError: TOO_LARGE when not even one image fits.
    """
    found: list[StoredImage] = []
    last: ImagePlace | None = None
    for rowid, place in walk:
        if len(found) == limit:
            return found, last
        query = f"SELECT {_IMAGE} FROM image i WHERE i.ordinal = ?"  # noqa: S608
        try:
            image = budget.shown(_image(connection.execute(query, (rowid,)).fetchone()))
        except faults.DamagedRowError as error:
            report_damage(error)
            continue
        if found and not budget.fits(image):
            return found, last
        budget.take_image(image)
        found.append(image)
        last = place
    return found, None


def report_damage(error: faults.DamagedRowError) -> None:
    """Counts and logs a damaged row that is left out of a list."""
    DAMAGED_ROWS.inc()
    _log.error("a damaged row is left out of a list: restore a sound snapshot", row=str(error))


def _image(row: Sequence[Any]) -> StoredImage:
    """An image of the columns `_IMAGE`."""
    checksum, *values = row[:12]
    what = f"image {row[2]!r}"
    faults.require(checksum, faults.of_values(*values), what)
    _, image_id, name, width, height, content_type, size_bytes, tags, attributes, created_ms, _ = values
    return StoredImage(
        image_id, name, width, height, content_type, size_bytes, tuple(_decoded(tags, list, what)),
        _decoded(attributes, dict, what), created_ms, row[12],
    )  # fmt: skip


def _record(row: Sequence[Any]) -> Record:
    """A record of the columns `_RECORD`, and `_MASK` or `_NO_MASK`."""
    checksum, body_checksum, *indexed, record_id = row[:11]
    box, attributes, image_id, mask_checksum, rle = row[11:15], row[15], row[16], row[17], row[18:21]
    _, record_rowid, _, level, area, iou, stability, _ = indexed
    what = f"record {record_id!r} of image {image_id!r}"
    faults.require(checksum, faults.of_indexed(indexed), what)
    faults.require(body_checksum, faults.of_body(record_rowid, record_id, box, attributes), what)
    faults.require(mask_checksum, faults.of_mask(record_rowid, *rle), what)
    return Record(
        record_id,
        image_id,
        Level(level),
        None if box[0] is None else (box[0], box[1], box[2], box[3]),
        None if rle[2] is None else RleMask(*rle),
        area,
        iou,
        stability,
        _decoded(attributes, dict, what) if attributes else {},
    )


def _decoded(text: str, kind: type, what: str) -> Any:
    """A JSON value of a kind; only a row older than checksums can hold anything else unnoticed."""
    if text == _EMPTY[kind]:
        return kind()
    try:
        value = json.loads(text)
        if "\\ud" in text:  # halves of characters cannot be sent; together they are emoji, for one
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        raise faults.DamagedRowError(f"{what} holds JSON that cannot be decoded") from error
    if not isinstance(value, kind):
        raise faults.DamagedRowError(f"{what} holds JSON of the wrong kind")
    return value
