"""Checkpoints: move the write-ahead log into the record file on a thread of their own, and check the result.

SQLite would do so within a commit and swallow the errors: a failing disk under the record file would go
unnoticed while the log grows without bound.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.store.database import Database, connect
from services.searcher.embedded.store.disk_reserve import DiskReserve
from services.searcher.embedded.store.faults import LogThrottle, explain
from services.searcher.embedded.store.group_commit import GroupCommitter
from services.searcher.embedded.store.locks import RestoreLock
from services.searcher.metrics import CHECKPOINT_FAILURES, LOG_BYTES

_PERIOD_S = 1.0
_SHORT_LOG = 16 << 20
_log = structlog.get_logger(__name__)


class Checkpointer:
    """A thread that checkpoints the log every second.

    Most of it is done while writes continue. Once the log is long, what was written in the meantime is
    checkpointed between two commits, so that the log starts over: it stays short, and its blocks are
    overwritten instead of allocated.

    Args:
        database: The record store.
        committer: Where the writes are.
        restore_lock: Held alone during a restore.
        reserve: Space for a record file that has to grow.
        check: Raises what forbids further writes, such as a record file that was moved.
        max_log_bytes: Size of the log above which no further writes are let in.
    """

    def __init__(
        self,
        database: Database,
        committer: GroupCommitter,
        restore_lock: RestoreLock,
        reserve: DiskReserve,
        check: Callable[[], None],
        max_log_bytes: int,
    ) -> None:
        self._database = database
        self._committer = committer
        self._restore_lock = restore_lock
        self._reserve = reserve
        self._check = check
        self._max_log_bytes = max_log_bytes
        self._connection = connect(database.path)
        self._done: int | None = None
        self._warnings = LogThrottle()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()
        self._connection.close()

    def run_once(self) -> None:
        """One checkpoint, where anything was written since the last one.

        Raises:
            RegionSearchError: Why the record file could not be written.
        """
        self._check_file()
        commits = self._committer.commits
        if commits == self._done:
            return
        try:
            left, size = self._checkpoint_with_reserve()
            if size > _SHORT_LOG:  # writes that went on meanwhile kept it from starting over
                left, size = self._committer.between(self._checkpoint)
        except sqlite3.Error as error:
            CHECKPOINT_FAILURES.inc()
            reason = explain(error, self._database.path)
            LOG_BYTES.set(self._database.log_bytes())
            self._bound(self._database.log_bytes(), reason.message)
            raise reason from error
        LOG_BYTES.set(size)
        self._bound(left, "long-running readers hold it")
        self._done = None if left else commits

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            try:
                with self._restore_lock.shared():
                    self.run_once()
            except RegionSearchError as error:
                if error.kind is not Kind.UNAVAILABLE and self._warnings.due(error.message):
                    _log.error(
                        "checkpoint failed: the log cannot be moved into the record file",
                        reason=error.message,
                    )
            else:
                self._warnings.reset()

    def _checkpoint_with_reserve(self) -> tuple[int, int]:
        """Checkpoints; a record file that has to grow on a full disk gets the reserve."""
        while True:
            try:
                return self._checkpoint(self._connection)
            except sqlite3.OperationalError as error:
                full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
                if not full or not self._reserve.spend():
                    raise

    def _checkpoint(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Checkpoints what needs no waiting; returns the bytes that are left, and the size of the log."""
        _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        page = connection.execute("PRAGMA page_size").fetchone()[0]
        return max(frames - moved, 0) * page, max(frames, 0) * page

    def _bound(self, log_bytes: int, why: str) -> None:
        refusal = None
        if log_bytes > self._max_log_bytes:
            refusal = RegionSearchError(
                Kind.UNAVAILABLE,
                f"the log of {self._database.path.name} has grown to {log_bytes >> 20} MiB "
                f"(embedded.max_log_bytes) because it cannot be checkpointed into the file: {why}",
                retry_after_s=5.0,
            )
        self._committer.hold(refusal)

    def _check_file(self) -> None:
        try:
            self._check()
        except RegionSearchError as error:
            self._committer.refuse(error)
            raise
