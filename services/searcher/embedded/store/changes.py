"""What writes have changed since a given one, as a small database, and how a replica's store takes it over.

Rows keep their numbers, write numbers and checksums, so that a replica's store is the same as the one it
follows: page tokens of one are good for the other.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from typing import IO

import numpy as np

from services.searcher.embedded.rows import Change
from services.searcher.embedded.store import faults, lookups, reads
from services.searcher.embedded.store.live_rows import live_rows
from services.searcher.embedded.store.schema import MIGRATIONS
from services.searcher.types import StorePosition

_IMAGE = (
    "ordinal, collection, image_id, name, width, height, content_type, size_bytes, tags, attributes,"
    " created_ms, region_count, added, checksum, place, changed"
)
_RECORD = (
    "key, collection, image, record_id, level, x_min, y_min, x_max, y_max, area, predicted_iou,"
    " stability_score, attributes, added, mask_height, mask_width, mask, checksum, body_checksum,"
    " mask_checksum"
)
_COLLECTION = "id, name, spec, created_ms, image_count, record_count, dropped, changed"
_BATCH_BYTES = 16 << 20
_ROW_BYTES = 1000  # of a record without its vector, generously


def position(connection: sqlite3.Connection, history: str) -> StorePosition:
    """How much a store has that is called so."""
    highest = lookups.highest_rowids(connection)
    return StorePosition(history, reads.last_seq(connection), highest.image, highest.record, len(MIGRATIONS))


def continues(connection: sqlite3.Connection, position: StorePosition) -> bool:
    """Whether the rows after a position are those that were written after it: both have one past."""
    rows = (("image", "ordinal", position.image_row), ("record", "key", position.record_row))
    for table, rowid, highest in rows:
        query = f"SELECT added FROM {table} WHERE {rowid} > ? ORDER BY {rowid} LIMIT 1"  # noqa: S608
        row = connection.execute(query, (highest,)).fetchone()
        if row is not None and row[0] <= position.seq:
            return False
    there = lookups.highest_rowids(connection)
    return position.image_row <= there.image and position.record_row <= there.record


def collect(connection: sqlite3.Connection, position: StorePosition) -> tuple[bytes, StorePosition]:
    """The changes after a position, of whole writes and about 16 MiB at most, and the position after them.

    Args:
        connection: In a consistent view. All rows that were removed since the position are still there.
        position: Of the replica.
    """
    dimension = max((spec.model.dimension for _, spec, _ in reads.collections(connection)), default=1)
    limit = max(_BATCH_BYTES // (2 * dimension + _ROW_BYTES), 1)
    row = connection.execute(
        "SELECT added FROM record WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?", (position.record_row, limit)
    ).fetchone()
    until = reads.last_seq(connection) if row is None else int(row[0])
    removed = "removed > :since AND removed <= :until"
    values = {
        "since": position.seq, "until": until, "image": position.image_row, "record": position.record_row,
    }  # fmt: skip
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as batch:
        batch.execute("PRAGMA page_size = 1024")
        batch.execute("BEGIN")

        def take(table: str, columns: str, query: str) -> None:
            batch.execute(f"CREATE TABLE {table} ({columns})")
            marks = ", ".join("?" * len(columns.split(",")))
            batch.executemany(f"INSERT INTO {table} VALUES ({marks})", connection.execute(query, values))  # noqa: S608

        take("state", "seq", "SELECT :until")
        take("collection", _COLLECTION, f"SELECT {_COLLECTION} FROM collection WHERE changed > :since")  # noqa: S608
        trained = "SELECT id, codec FROM collection WHERE json_extract(spec, '$.codes.trained_seq') > :since"
        take("trained_codec", "id, codec", trained)
        changed = "added <= :until AND (ordinal > :image OR changed > :since)"
        take("image", _IMAGE, f"SELECT {_IMAGE} FROM image WHERE {changed}")  # noqa: S608
        take("removed_image", "ordinal, removed", f"SELECT ordinal, removed FROM image WHERE {removed}")  # noqa: S608
        tags = f"SELECT collection, tag, image FROM image_tag WHERE image IN (SELECT ordinal FROM image WHERE {changed})"  # noqa: S608, E501
        take("image_tag", "collection, tag, image", tags)
        added = "key > :record AND added <= :until"
        take("record", _RECORD, f"SELECT {_RECORD} FROM record WHERE {added}")  # noqa: S608
        gone = f"SELECT key, collection, removed FROM record WHERE {removed}"  # noqa: S608
        take("removed_record", "key, collection, removed", gone)
        attribute = "collection, name, value, image, record"
        take(
            "attribute",
            attribute,
            f"SELECT {attribute} FROM attribute WHERE record = 0 AND image IN"  # noqa: S608
            f" (SELECT ordinal FROM image WHERE {changed}) UNION ALL SELECT a.collection, a.name, a.value,"
            f" a.image, a.record FROM record r JOIN attribute a ON a.image = r.image AND a.record = r.key"
            " WHERE r.key > :record AND r.added <= :until AND r.attributes IS NOT NULL",
        )
        take(
            "vector",
            "key, value, checksum",
            "SELECT v.key, v.value, v.checksum FROM vector v JOIN record r ON r.key = v.key"
            " WHERE v.key > :record AND r.added <= :until",
        )
        image_row, record_row = batch.execute(
            "SELECT (SELECT MAX(ordinal) FROM image), (SELECT MAX(key) FROM record)"
        ).fetchone()
        batch.execute("COMMIT")
        reached = replace(
            position,
            seq=until,
            image_row=max(image_row or 0, position.image_row),
            record_row=record_row or position.record_row,
        )
        return batch.serialize(), reached


@contextlib.contextmanager
def opened(changes: IO[bytes]) -> Iterator[sqlite3.Connection]:
    """The database that `collect` made."""
    changes.seek(0)
    with contextlib.closing(
        sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    ) as batch:
        batch.deserialize(changes.read())
        # What `live_rows` reads of a store, and what is not sent.
        batch.execute("CREATE TABLE IF NOT EXISTS trained_codec (id, codec)")  # earlier versions send none
        batch.execute("ALTER TABLE collection ADD COLUMN codec")
        batch.execute("ALTER TABLE collection ADD COLUMN checksum")
        batch.execute("ALTER TABLE image ADD COLUMN removed")
        batch.execute("ALTER TABLE record ADD COLUMN removed")
        yield batch


def apply(connection: sqlite3.Connection, batch: sqlite3.Connection) -> list[Change]:
    """Brings a replica's store up to date, inside a transaction; returns what that means for the indexes.

    Raises:
        DamagedRowError: A row is not what was written.
        sqlite3.Error: The changes do not fit to the store.
    """

    def put(statement: str, query: str) -> None:
        connection.executemany(statement, batch.execute(query))

    (since,) = connection.execute("SELECT seq FROM state").fetchone()
    for table, rowid in (("image", "ordinal"), ("record", "key")):
        put(
            f"UPDATE {table} SET removed = ? WHERE {rowid} = ? AND removed IS NULL",  # noqa: S608
            f"SELECT removed, {rowid} FROM removed_{table}",  # noqa: S608
        )
    put("DELETE FROM image_tag WHERE image = ?", "SELECT ordinal FROM image")
    put("DELETE FROM attribute WHERE image = ? AND record = 0", "SELECT ordinal FROM image")
    put(
        f"INSERT INTO image ({_IMAGE}, removed) VALUES ({_marks(_IMAGE)}, ?)"  # noqa: S608
        " ON CONFLICT (ordinal) DO UPDATE SET name = excluded.name, tags = excluded.tags,"
        " attributes = excluded.attributes,"
        " region_count = excluded.region_count, checksum = excluded.checksum, changed = excluded.changed",
        f"SELECT {_named('i', _IMAGE)}, r.removed FROM image i LEFT JOIN removed_image r USING (ordinal)",  # noqa: S608
    )
    put("INSERT INTO image_tag VALUES (?, ?, ?)", "SELECT * FROM image_tag")
    put(
        f"INSERT INTO record ({_RECORD}, removed) VALUES ({_marks(_RECORD)}, ?)",  # noqa: S608
        f"SELECT {_named('i', _RECORD)}, r.removed FROM record i LEFT JOIN removed_record r USING (key)",  # noqa: S608
    )
    put("INSERT INTO vector VALUES (?, ?, ?)", "SELECT * FROM vector")
    put("INSERT INTO attribute VALUES (?, ?, ?, ?, ?)", "SELECT * FROM attribute")
    _apply_collections(connection, batch)
    connection.execute("UPDATE state SET seq = ?", batch.execute("SELECT seq FROM state").fetchone())
    return [*_added(batch), *_removed(batch), *_described(batch, since)]


def _apply_collections(connection: sqlite3.Connection, batch: sqlite3.Connection) -> None:
    found = batch.execute(f"SELECT {_COLLECTION} FROM collection").fetchall()  # noqa: S608
    trained: dict[int, bytes] = dict(batch.execute("SELECT id, codec FROM trained_codec"))
    # Names may have been exchanged: all are free before the first is given. No name has a slash.
    connection.executemany("UPDATE collection SET name = '/' || id WHERE id = ?", [row[:1] for row in found])
    for rowid, name, spec, created_ms, *rest in found:
        # Each searcher learns its own codec, unless one was trained.
        (codec,) = connection.execute("SELECT codec FROM collection WHERE id = ?", (rowid,)).fetchone() or (
            None,
        )
        codec = trained.get(rowid, codec)
        checksum = faults.of_values(name, spec, created_ms, codec)
        connection.execute(
            f"INSERT INTO collection ({_COLLECTION}, codec, checksum) VALUES ({_marks(_COLLECTION)}, ?, ?)"  # noqa: S608
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name, spec = excluded.spec,"
            " codec = excluded.codec, image_count = excluded.image_count,"
            " record_count = excluded.record_count, dropped = excluded.dropped,"
            " changed = excluded.changed, checksum = excluded.checksum",
            (rowid, name, spec, created_ms, *rest, codec, checksum),
        )


def _added(batch: sqlite3.Connection) -> Iterator[Change]:
    for number, rows, added in live_rows(batch):
        edges = [0, *(np.flatnonzero(np.diff(added)) + 1).tolist(), len(rows)]
        for start, stop in pairwise(edges):
            yield Change(number, int(added[start]), rows.part(start, stop))


def _removed(batch: sqlite3.Connection) -> Iterator[Change]:
    found = batch.execute("SELECT collection, removed, key FROM removed_record ORDER BY 1, 2, 3")
    for (number, seq), rows in groupby(found, lambda row: row[:2]):
        yield Change(number, seq, None, np.array([row[2] for row in rows], np.int64))


def _described(batch: sqlite3.Connection, since: int) -> Iterator[Change]:
    found = batch.execute("SELECT DISTINCT collection FROM image WHERE changed > ?", (since,))
    (seq,) = batch.execute("SELECT seq FROM state").fetchone()
    for (number,) in found.fetchall():
        yield Change(number, seq, described=True)


def _marks(columns: str) -> str:
    return ", ".join("?" * len(columns.split(",")))


def _named(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column.strip()}" for column in columns.split(","))
