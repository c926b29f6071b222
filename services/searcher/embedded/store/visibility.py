"""The visibility horizon: which past states can still be searched, and the end of rows that none shows."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from regionsearch.errors import Kind, RegionSearchError


class VisibilityHorizon:
    """The oldest write whose state is kept: that of `ttl_s` seconds ago, or one that a search still reads.

    Rows that were removed up to this write are invisible to every search. Safe to use from several threads.

    Args:
        ttl_s: How long states are kept.
        present: Returns the last write. No state before the one at start can be searched.
        vacuumed: Up to which write removed rows have left the disk; by default, the last one. The others
            are kept for `ttl_s` more seconds, for read replicas that lack the last writes before a restart.
    """

    def __init__(self, ttl_s: float, present: Callable[[], int], vacuumed: int | None = None) -> None:
        self._ttl_s = ttl_s
        self._present = present
        self._seq = present()
        self._kept = self._due = self._seq if vacuumed is None else vacuumed
        self._marks: deque[tuple[float, int]] = deque()
        self._held: list[int] = []
        self._lock = threading.Lock()

    @property
    def seq(self) -> int:
        """The oldest write whose state is kept."""
        return self._seq

    @property
    def kept(self) -> int:
        """The oldest write after which every change is still in the store: rows removed up to it may go."""
        return self._kept

    @contextlib.contextmanager
    def keeping(self, seq: int) -> Iterator[bool]:
        """Keeps all changes after a write in the store until the block ends.

        Yields:
            Whether they are all still there; if not, nothing is kept.
        """
        with self._lock:
            there = self._kept <= seq <= self._present()
            if there:
                self._held.append(seq)
        try:
            yield there
        finally:
            with self._lock:
                if there:
                    self._held.remove(seq)

    @contextlib.contextmanager
    def holding(self, pinned: Sequence[int] = ()) -> Iterator[int]:
        """Holds states until the block ends: the state after the last write, which it yields, and older ones.

        Args:
            pinned: The writes whose states are wanted as well.

        Raises:
            RegionSearchError: ABORTED when one of them is not kept any more.
        """
        with self._lock:
            present = self._present()
            oldest = min([present, *pinned])
            if oldest < self._seq or max([present, *pinned]) > present:
                raise RegionSearchError(
                    Kind.ABORTED,
                    "this page's state of the collection is gone: search again from the first page",
                    field="page_token",
                )
            self._held.append(oldest)
        try:
            yield present
        finally:
            with self._lock:
                self._held.remove(oldest)

    def advance(self) -> None:
        """Notes the last write, and moves the horizon past states that are too old and not held."""
        with self._lock:
            now = time.monotonic()
            self._marks.append((now, self._present()))
            while self._marks and self._marks[0][0] <= now - self._ttl_s:
                self._due = self._marks.popleft()[1]
            oldest = min([self._due, *self._held])
            self._seq, self._kept = max(self._seq, oldest), max(self._kept, oldest)

    def reset(self) -> None:
        """After a restore: moves the horizon to the last write."""
        with self._lock:
            self._marks.clear()
            self._seq = self._due = self._kept = self._present()


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
    if gone or images or dropped:
        connection.execute("UPDATE state SET vacuumed = MAX(vacuumed, ?)", (horizon,))
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
