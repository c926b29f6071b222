"""Vacuum: frees the space of removed rows. Each function runs inside the group commit's transaction."""

from __future__ import annotations

import sqlite3


def vacuum(connection: sqlite3.Connection, horizon: int, limit: int) -> int:
    """Deletes rows that were removed at or before write `horizon`, and those of collections dropped by then.

    Returns:
        The number of records and images freed; 0 when there is nothing left to do.
    """
    gone = connection.execute(
        "SELECT key, image FROM record WHERE removed <= ? LIMIT ?", (horizon, limit)
    ).fetchall()
    query = "SELECT id FROM collection WHERE dropped BETWEEN 1 AND ?"
    dropped = [row[0] for row in connection.execute(query, (horizon,))]
    images = connection.execute(
        "SELECT ordinal FROM image WHERE removed <= ? LIMIT ?", (horizon, limit)
    ).fetchall()
    for number in dropped:
        wanted = (number, limit)
        gone += connection.execute(
            "SELECT key, image FROM record WHERE collection = ? AND removed IS NULL LIMIT ?", wanted
        ).fetchall()
        images += connection.execute(
            "SELECT ordinal FROM image WHERE collection = ? AND removed IS NULL LIMIT ?", wanted
        ).fetchall()
    if not gone and not images:
        connection.executemany("DELETE FROM collection WHERE id = ?", [(number,) for number in dropped])
    record_rowids = [(record_rowid,) for record_rowid, _ in gone]
    connection.executemany("DELETE FROM vector WHERE key = ?", record_rowids)
    connection.executemany("DELETE FROM record WHERE key = ?", record_rowids)
    connection.executemany("DELETE FROM attribute WHERE record = ? AND image = ?", gone)
    for table, column in (("image", "ordinal"), ("image_tag", "image"), ("attribute", "image")):
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", images)  # noqa: S608
    return len(gone) + len(images)


def release_pages(connection: sqlite3.Connection, pages: int) -> int:
    """Returns up to `pages` pages to the file system if a quarter of the file is free; returns how many."""
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    if 4 * free <= connection.execute("PRAGMA page_count").fetchone()[0]:
        return 0
    connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
    return min(int(free), pages)
