"""Group commit: one thread writes many callers' changes in one transaction, with one sync to disk."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from regionsearch.errors import Kind, RegionSearchError, overloaded
from services.searcher.embedded.rows import Change
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.faults import explain
from services.searcher.embedded.store.reads import last_seq
from services.searcher.metrics import COMMIT_WRITES

T = TypeVar("T")
Effect = Change | Sequence[Change] | None
Operation = Callable[[sqlite3.Connection], tuple[T, Effect]]
"""Runs inside the transaction and returns its answer and what it means for the indexes."""

_GROUP_COST = 8192


@dataclass(slots=True)
class _Job(Generic[T]):
    operation: Callable[[sqlite3.Connection], Any]
    cost: int
    alone: bool
    outside: bool = False
    future: Future[T] = field(default_factory=Future)
    outcome: tuple[T, Sequence[Change]] | None = None
    error: Exception | None = None


class GroupCommitter:
    """Runs writes in the order of their arrival, as many in one commit as have gathered.

    While one commit waits for the disk the next group gathers, so no write is ever delayed on purpose. An
    operation that fails is rolled back alone. Changes are applied to the index after the commit, and writes
    are answered after that: what is answered is on disk and visible.

    Args:
        database: The record store.
        apply: Called for every committed change, in order.
        on_fatal: Called when the index can no longer follow the store; the process should end.
        max_pending: Cost of waiting writes (records, at least 1 each) above which further ones are refused.
        reserve: Called for every change before its commit: takes the memory that `apply` will need, or raises
            MemoryError. What is committed can be applied.
        release: Called when changes that memory was taken for were rolled back.
    """

    def __init__(
        self,
        database: Database,
        apply: Callable[[Change], None],
        on_fatal: Callable[[BaseException], None],
        max_pending: int = 65_536,
        *,
        reserve: Callable[[Change], None] = lambda change: None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._apply = apply
        self._reserve = reserve
        self._release = release
        self._on_fatal = on_fatal
        self._max_pending = max_pending
        self._pending = 0
        self._jobs: deque[_Job[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._refusal: RegionSearchError | None = None
        self._held: RegionSearchError | None = None
        self._commits = 0
        self._seq = last_seq(database.writer)
        self._advanced = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    @property
    def commits(self) -> int:
        """Number of commits since the start."""
        return self._commits

    @property
    def seq(self) -> int:
        """Number of the last write that is on disk and visible."""
        return self._seq

    def wait_beyond(self, seq: int, timeout_s: float) -> None:
        """Returns once a write after `seq` is visible, or the time has passed."""
        with self._advanced:
            self._advanced.wait_for(lambda: self._seq > seq, timeout_s)

    def submit(self, operation: Operation[T], cost: int = 1, *, alone: bool = False) -> Future[T]:
        """Queues a write.

        Args:
            operation: What to do.
            cost: Number of records.
            alone: Commit everything before it first, because the operation reads the index.

        Raises:
            RegionSearchError: OVERLOADED when too much is waiting, or why writing is impossible.
        """
        return self._queue(_Job(operation, max(cost, 1), alone))

    def between(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Runs something on the writing connection between two commits, outside of a transaction."""
        done: Future[T] = self._queue(_Job(action, 1, alone=True, outside=True))
        return done.result()

    def _queue(self, job: _Job[Any]) -> Future[Any]:
        with self._changed:
            why = self._refusal or (None if job.outside else self._held)
            if why is not None:
                raise why
            if self._pending and self._pending + job.cost > self._max_pending:
                raise overloaded(f"{self._pending} records wait to be written", retry_after_s=0.5)
            self._pending += job.cost
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def refuse(self, why: RegionSearchError) -> None:
        """Refuses every further write."""
        with self._changed:
            self._refusal = self._refusal or why

    def hold(self, why: RegionSearchError | None) -> None:
        """Refuses further writes until it is called with None."""
        with self._changed:
            self._held = why

    def check(self) -> None:
        """Raises why writing is impossible, if it is."""
        with self._changed:
            if self._refusal is not None:
                raise self._refusal

    def resume(self) -> int:
        """Goes on after the store was replaced, and returns its last write; none may be waiting."""
        self._seq = last_seq(self._database.writer)
        self._commits += 1
        self._database.last_write.note(self._seq)
        return self._seq

    def close(self) -> None:
        """Finishes what is queued and ends the thread."""
        self.refuse(RegionSearchError(Kind.UNAVAILABLE, "the searcher is stopping", retry_after_s=1.0))
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._gather():
            try:
                self._commit(group)
            except BaseException as error:  # the index may lack what the store has: only a restart heals that
                self.refuse(
                    RegionSearchError(Kind.INTERNAL, "the writing thread has failed: restart the searcher")
                )
                _fail([job for job in group if not job.future.done()], error)
                self._on_fatal(error)
            with self._changed:
                self._pending -= sum(job.cost for job in group)

    def _gather(self) -> list[_Job[Any]]:
        """Waits for a write and takes it with those queued after it; nothing when closed and empty."""
        with self._changed:
            while not self._jobs and not self._closing:
                self._changed.wait()
            group: list[_Job[Any]] = []
            cost = 0
            while self._jobs and (not group or not (self._jobs[0].alone or group[0].alone)):
                if group and cost + self._jobs[0].cost > _GROUP_COST:
                    break
                group.append(self._jobs.popleft())
                cost += group[-1].cost
            return group

    def _commit(self, group: list[_Job[Any]]) -> None:
        connection = self._database.writer
        if group[0].outside:
            _run_outside(group[0], connection)
            return
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            written = [job for job in group if job.future.set_running_or_notify_cancel()]
            for job in written:
                self._write(job)
            seq = last_seq(connection)
            committing = True
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection, error)
            self._release()
            failure = explain(error, self._database.path)
            if committing and _disk_failed(error):
                failure = RegionSearchError(
                    Kind.INTERNAL,
                    f"the disk failed under {self._database.path.name} ({error}) while this write was made "
                    "durable: whether the write is kept is known only after a restart of the searcher; "
                    "look before sending it again",
                )
            _fail([job for job in group if not job.future.done()], failure)
            return
        self._commits += 1
        self._database.last_write.note(seq)
        for job in written:
            for change in job.outcome[1] if job.outcome is not None else ():
                self._apply(change)
        with self._advanced:
            self._seq = seq
            self._advanced.notify_all()
        COMMIT_WRITES.observe(len(written))
        for job in written:  # last: a caller with an answer may rely on its write being complete
            if job.outcome is not None:
                job.future.set_result(job.outcome[0])
            else:
                job.future.set_exception(job.error)

    def _write(self, job: _Job[Any]) -> None:
        """Runs one operation inside the transaction; whatever it raises concerns its caller alone.

        Raises:
            sqlite3.Error: The transaction as a whole is lost.
        """
        connection = self._database.writer
        connection.execute("SAVEPOINT job")
        try:
            answer, effect = job.operation(connection)
            changes = (effect,) if isinstance(effect, Change) else effect or ()
            for change in changes:
                self._reserve(change)
            job.outcome = answer, changes
        except MemoryError:
            connection.execute("ROLLBACK TO job")
            job.error = overloaded("not enough memory for this write: delete records, or retry later", 5.0)
        except Exception as error:
            if not connection.in_transaction or _disk_failed(error):  # SQLite itself gave up, or should
                raise
            connection.execute("ROLLBACK TO job")
            job.error = explain(error, self._database.path) if isinstance(error, sqlite3.Error) else error
        connection.execute("RELEASE job")

    def _roll_back(self, connection: sqlite3.Connection, error: sqlite3.Error) -> None:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if _disk_failed(error):
            # After a failed synchronisation the kernel may drop what it could not write and report success
            # next time, so a retry proves nothing: https://wiki.postgresql.org/wiki/Fsync_Errors
            self.refuse(
                RegionSearchError(
                    Kind.FAILED_PRECONDITION,
                    f"the disk failed under {self._database.path.name} ({error}): check it and restart "
                    "the searcher; reads continue",
                )
            )


def _run_outside(job: _Job[Any], connection: sqlite3.Connection) -> None:
    if job.future.set_running_or_notify_cancel():
        try:
            job.future.set_result(job.operation(connection))
        except Exception as error:
            job.future.set_exception(error)


def _disk_failed(error: Exception) -> bool:
    return (
        isinstance(error, sqlite3.Error)
        and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
    )


def _fail(jobs: list[_Job[Any]], error: BaseException) -> None:
    for job in jobs:
        job.future.set_exception(error)
