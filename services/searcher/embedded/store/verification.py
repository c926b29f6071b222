"""Verification of a record file: its schema, its structure, its content.

Checksums of rows say that a row is whole. The checks here cover what checksums cannot: that no row is
missing, that indexes and the tables that filters read agree with the rows, that counters are right, and that
nothing is there that this program does not make, such as a trigger.
"""

# ruff: noqa: S608  # the parts of these statements are constants
from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from services.searcher.embedded.store import faults
from services.searcher.embedded.store.faults import damaged, explained
from services.searcher.embedded.store.reads import IMAGE_VALUES

_LIVE_IMAGES = "image i JOIN collection c ON c.id = i.collection AND c.dropped = 0 WHERE i.removed IS NULL"
_LIVE_RECORDS = "record r JOIN collection c ON c.id = r.collection AND c.dropped = 0 WHERE r.removed IS NULL"
_TAGGED = "FROM image i, json_each(i.tags) j JOIN collection c ON c.id = i.collection AND c.dropped = 0"

# Each finds the name of something that is wrong.
_CHECKS = (
    (
        "tags or attributes cannot be decoded, image",
        "SELECT image_id FROM image WHERE removed IS NULL AND (CASE WHEN json_valid(tags) THEN"
        " json_type(tags) != 'array' ELSE 1 END OR CASE WHEN json_valid(attributes) THEN"
        " json_type(attributes) != 'object' ELSE 1 END)",
    ),
    (
        "attributes cannot be decoded, record",
        "SELECT record_id FROM record WHERE removed IS NULL AND attributes IS NOT NULL AND CASE WHEN"
        " json_valid(attributes) THEN json_type(attributes) != 'object' ELSE 1 END",
    ),
    (
        "the numbers for new rows are too low, table",
        "SELECT name FROM (SELECT 'collection' name, MAX(id) last FROM collection UNION ALL SELECT"
        " 'image', MAX(ordinal) FROM image UNION ALL SELECT 'record', MAX(key) FROM record) t WHERE"
        " t.last > COALESCE((SELECT s.seq FROM sqlite_sequence s WHERE s.name = t.name), 0)",
    ),
    (
        "the number of the last write is too low, record",
        "SELECT record_id FROM record WHERE MAX(added, COALESCE(removed, 0)) > (SELECT seq FROM state)",
    ),
    (
        "the number of images is wrong, collection",
        "SELECT name FROM collection c WHERE dropped = 0 AND image_count != (SELECT COUNT(*) FROM image"
        " WHERE collection = c.id AND removed IS NULL)",
    ),
    (
        "the number of records is wrong, collection",
        "SELECT name FROM collection c WHERE dropped = 0 AND record_count != (SELECT COUNT(*) FROM"
        " record WHERE collection = c.id AND removed IS NULL)",
    ),
    (
        "the number of regions is wrong, image",
        f"SELECT i.image_id FROM {_LIVE_IMAGES} AND region_count != (SELECT COUNT(*) FROM record WHERE"
        " image = i.ordinal AND removed IS NULL AND level = 2)",
    ),
    (
        "a tag cannot be searched for, image",
        f"SELECT i.image_id {_TAGGED} WHERE i.removed IS NULL AND NOT EXISTS (SELECT 1 FROM image_tag t"
        " WHERE t.collection = i.collection AND t.tag = j.value AND t.image = i.ordinal)",
    ),
    (
        "a tag that was not given can be searched for, image",
        f"SELECT i.image_id FROM image_tag t JOIN {_LIVE_IMAGES} AND t.image = i.ordinal AND"
        " (t.collection != i.collection OR NOT EXISTS (SELECT 1 FROM json_each(i.tags) j WHERE j.value ="
        " t.tag))",
    ),
    (
        "an attribute cannot be searched for, image",
        f"SELECT i.image_id FROM {_LIVE_IMAGES} AND EXISTS (SELECT 1 FROM json_each(i.attributes) j"
        " WHERE NOT EXISTS (SELECT 1 FROM attribute a WHERE a.collection = i.collection AND a.name ="
        " j.key AND a.value = j.value AND a.image = i.ordinal AND a.record = 0))",
    ),
    (
        "an attribute cannot be searched for, record",
        f"SELECT r.record_id FROM {_LIVE_RECORDS} AND r.attributes IS NOT NULL AND EXISTS (SELECT 1 FROM"
        " json_each(r.attributes) j WHERE NOT EXISTS (SELECT 1 FROM attribute a WHERE a.collection ="
        " r.collection AND a.name = j.key AND a.value = j.value AND a.image = r.image AND a.record ="
        " r.key))",
    ),
    (
        "an attribute that was not given can be searched for, image",
        f"SELECT i.image_id FROM attribute a JOIN {_LIVE_IMAGES} AND a.record = 0 AND a.image ="
        " i.ordinal AND (a.collection != i.collection OR NOT EXISTS (SELECT 1 FROM"
        " json_each(i.attributes) j WHERE j.key = a.name AND j.value = a.value))",
    ),
    (
        "an attribute that was not given can be searched for, record",
        f"SELECT r.record_id FROM attribute a JOIN {_LIVE_RECORDS} AND a.record = r.key AND"
        " (a.collection != r.collection OR a.image != r.image OR NOT EXISTS (SELECT 1 FROM"
        " json_each(COALESCE(r.attributes, '{}')) j WHERE j.key = a.name AND j.value = a.value))",
    ),
)


def check_schema(connection: sqlite3.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    """Refuses a file whose tables, indexes and triggers are not those of its version. Changes nothing.

    Raises:
        RegionSearchError: DATA_LOSS.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        for script in migrations[:version]:
            model.executescript(script)
        wrong = _schema(connection) ^ _schema(model)
    if wrong:
        names = ", ".join(sorted({f"{kind} {name}" for kind, name, _ in wrong}))
        raise damaged(path, f"its schema is not that of version {version}: {names}")


def check_store(connection: sqlite3.Connection, path: Path) -> None:
    """Reads the whole file and refuses it when its structure is damaged or its parts disagree.

    Raises:
        RegionSearchError: DATA_LOSS.
    """
    with explained(path):
        verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise damaged(path, str(verdict))
        for wrong, query in _CHECKS:
            if (row := connection.execute(f"{query} LIMIT 1").fetchone()) is not None:
                raise damaged(path, f"{wrong} {row[0]!r}")
        for checksum, *values in connection.execute(
            f"SELECT checksum, {IMAGE_VALUES} FROM image WHERE removed IS NULL"
        ):
            faults.require(checksum, faults.of_values(*values), f"image {values[1]!r}")


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name and definition of everything; without what SQLite makes by itself."""
    found = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    return {(kind, name, " ".join((sql or "").split())) for kind, name, sql in found}
