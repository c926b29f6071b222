"""Rows of collections: created, renamed, dropped; and the number of a write."""

from __future__ import annotations

import json
import sqlite3

from regionsearch.errors import Kind, RegionSearchError, not_found
from services.searcher.embedded.store import faults
from services.searcher.types import Collection


def next_seq(connection: sqlite3.Connection) -> int:
    """Numbers a write."""
    row = connection.execute("UPDATE state SET seq = seq + 1 RETURNING seq").fetchone()
    return int(row[0])


def create_collection(connection: sqlite3.Connection, collection: Collection) -> int:
    """Adds an empty collection and returns its rowid.

    Raises:
        RegionSearchError: ALREADY_EXISTS.
    """
    text = json.dumps(collection.spec)
    checksum = faults.of_values(collection.name, text, collection.created_ms, None)
    try:
        row = connection.execute(
            "INSERT INTO collection (name, spec, created_ms, checksum, changed)"
            " VALUES (?, ?, ?, ?, (SELECT seq FROM state)) RETURNING id",
            (collection.name, text, collection.created_ms, checksum),
        ).fetchone()
    except sqlite3.IntegrityError as error:
        raise RegionSearchError(
            Kind.ALREADY_EXISTS, f"there is a collection {collection.name!r} already", field="name"
        ) from error
    return int(row[0])


class RenamedError(Exception):
    """While a write waited, its collection's name was given to another one."""


def require_collection(connection: sqlite3.Connection, collection_rowid: int, name: str) -> None:
    """Refuses a write whose collection was dropped or renamed while it waited.

    Raises:
        RegionSearchError: NOT_FOUND.
        RenamedError: It has another name now.
    """
    row = connection.execute(
        "SELECT name FROM collection WHERE id = ? AND dropped = 0", (collection_rowid,)
    ).fetchone()
    if row is None:
        query = "SELECT 1 FROM collection WHERE name = ? AND dropped = 0"
        if connection.execute(query, (name,)).fetchone() is not None:
            raise RenamedError(name)
        raise not_found("collection", f"collection {name!r} has been deleted")
    if row[0] != name:
        raise RenamedError(name)


def describe_collection(
    connection: sqlite3.Connection, collection_rowid: int, described: Collection, codec: bytes | None = None
) -> None:
    """Gives a collection another name and description, and another codec where one is given.

    Raises:
        RegionSearchError: ALREADY_EXISTS.
    """
    created_ms, present = connection.execute(
        "SELECT created_ms, codec FROM collection WHERE id = ?", (collection_rowid,)
    ).fetchone()
    codec = present if codec is None else codec
    text = json.dumps(described.spec)
    checksum = faults.of_values(described.name, text, created_ms, codec)
    try:
        connection.execute(
            "UPDATE collection SET name = ?, spec = ?, codec = ?, checksum = ?,"
            " changed = (SELECT seq FROM state) WHERE id = ?",
            (described.name, text, codec, checksum, collection_rowid),
        )
    except sqlite3.IntegrityError as error:
        raise RegionSearchError(
            Kind.ALREADY_EXISTS, f"there is a collection {described.name!r} already", field="keep_as"
        ) from error


def drop_collection(connection: sqlite3.Connection, collection_rowid: int, seq: int) -> None:
    """Hides a collection and notes the write that did; `vacuum` frees its space once no search sees it."""
    connection.execute(
        "UPDATE collection SET dropped = ?, changed = ? WHERE id = ?", (seq, seq, collection_rowid)
    )


def store_codec(connection: sqlite3.Connection, collection_rowid: int, codec: bytes) -> None:
    """Stores the codec of a collection's binary codes."""
    values = connection.execute(
        "SELECT name, spec, created_ms FROM collection WHERE id = ?", (collection_rowid,)
    ).fetchone()
    connection.execute(
        "UPDATE collection SET codec = ?, checksum = ? WHERE id = ?",
        (codec, faults.of_values(*values, codec), collection_rowid),
    )
