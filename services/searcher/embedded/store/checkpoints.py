"""Folding the log into the record file, beside the writes, and looking at the result.

SQLite would do it by itself inside of a commit, and swallow its errors: a disk that fails under the record
file would go unnoticed while the log grows without end.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.store.database import Database, connect
from services.searcher.embedded.store.disk_reserve import DiskReserve
from services.searcher.embedded.store.faults import explain
from services.searcher.embedded.store.group_commit import GroupCommitter
from services.searcher.embedded.store.restore_lock import RestoreLock
from services.searcher.embedded.store.retries import Seldom
from services.searcher.metrics import CHECKPOINT_FAILURES, LOG_BYTES

_PERIOD_S = 1.0
_SHORT_LOG = 16 << 20
_log = structlog.get_logger(__name__)


class Checkpointer:
    """A thread that folds what was written into the record file, every second.

    Most of it is done beside the writes. Only what came meanwhile is left, and where that is much it is
    folded between two commits, so that the log begins anew.

    Args:
        database: The record store.
        committer: Where the writes are.
        gate: Closed during a restore.
        reserve: Space for a record file that has to grow.
        check: Raises what forbids further writes, such as a record file that was moved.
        max_log_bytes: Size of the log above which no further writes are let in.
    """

    def __init__(
        self,
        database: Database,
        committer: GroupCommitter,
        gate: RestoreLock,
        reserve: DiskReserve,
        check: Callable[[], None],
        max_log_bytes: int,
    ) -> None:
        self._database = database
        self._committer = committer
        self._gate = gate
        self._reserve = reserve
        self._check = check
        self._max_log_bytes = max_log_bytes
        self._connection = connect(database.path)
        self._done: int | None = None
        self._warnings = Seldom()
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
            left, size = self._fold_with_reserve()
            if left > _SHORT_LOG:
                left, size = self._committer.between(self._fold)
        except sqlite3.Error as error:
            CHECKPOINT_FAILURES.inc()
            reason = explain(error, self._database.path)
            LOG_BYTES.set(self._database.log_bytes())
            self._bound(self._database.log_bytes(), reason.message)
            raise reason from error
        LOG_BYTES.set(size)
        self._bound(left, "readers that have begun long ago hold it")
        self._done = None if left else commits

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            try:
                with self._gate.shared():
                    self.run_once()
            except RegionSearchError as error:
                if error.kind is not Kind.UNAVAILABLE and self._warnings.due(error.message):
                    _log.error("the log cannot be folded into the record file", reason=error.message)
            else:
                self._warnings.forget()

    def _fold_with_reserve(self) -> tuple[int, int]:
        """Folds; a record file that has to grow on a full disk gets the reserve."""
        while True:
            try:
                return self._fold(self._connection)
            except sqlite3.OperationalError as error:
                full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
                if not full or not self._reserve.spend():
                    raise

    def _fold(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Folds what can be without waiting for anybody; bytes that are left, and bytes of the log."""
        _, frames, folded = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        page = connection.execute("PRAGMA page_size").fetchone()[0]
        return max(frames - folded, 0) * page, max(frames, 0) * page

    def _bound(self, log_bytes: int, why: str) -> None:
        refusal = None
        if log_bytes > self._max_log_bytes:
            refusal = RegionSearchError(
                Kind.UNAVAILABLE,
                f"the log of {self._database.path.name} has grown to {log_bytes >> 20} MiB "
                f"(embedded.max_log_bytes) because it cannot be folded into the file: {why}",
                retry_after_s=5.0,
            )
        self._committer.hold(refusal)

    def _check_file(self) -> None:
        try:
            self._check()
        except RegionSearchError as error:
            self._committer.refuse(error)
            raise
