"""What one read replica is sent: a snapshot if its store cannot be continued, then all changes."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from typing import BinaryIO

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.embedded.store import changes
from services.searcher.embedded.store.database import Database
from services.searcher.embedded.store.group_commit import GroupCommitter
from services.searcher.embedded.store.locks import RestoreLock
from services.searcher.embedded.store.schema import MIGRATIONS
from services.searcher.embedded.store.visibility import VisibilityHorizon
from services.searcher.types import FeedFile, StorePosition


class ChangeFeed:
    """See `services.searcher.engine.Feed`. While it is open, rows that the replica must be told of stay.

    Args:
        database: The record store.
        committer: Where its writes are.
        horizon: Keeps removed rows.
        restore_lock: Held alone during a restore.
        history: Names the store.
        snapshot: Makes a snapshot, and names its position.
        position: Of the replica.

    Raises:
        RegionSearchError: FAILED_PRECONDITION for a replica whose store has another format.
    """

    def __init__(
        self,
        database: Database,
        committer: GroupCommitter,
        horizon: VisibilityHorizon,
        restore_lock: RestoreLock,
        history: Callable[[], str],
        snapshot: Callable[[], tuple[BinaryIO, StorePosition]],
        position: StorePosition,
    ) -> None:
        if position.schema_version != len(MIGRATIONS):
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"the read replica's store has version {position.schema_version}, this one "
                f"{len(MIGRATIONS)}: run the same version of the program on both",
            )
        self._database = database
        self._committer = committer
        self._horizon = horizon
        self._restore_lock = restore_lock
        self._history = history
        self._snapshot = snapshot
        self._begun = history()
        self._kept = contextlib.ExitStack()
        self._busy = threading.Lock()
        with restore_lock.shared(), database.reading() as connection:
            same = position.history == self._begun and changes.continues(connection, position)
        self._position = position if same and self._keep(position.seq) else None

    @property
    def last_seq(self) -> int:
        return self._committer.seq

    def following(self, timeout_s: float) -> FeedFile | None:
        with self._busy:
            if self._position is not None:
                self._committer.wait_beyond(self._position.seq, timeout_s)
            with self._restore_lock.shared():
                if self._history() != self._begun:
                    raise RegionSearchError(
                        Kind.ABORTED, "the store was replaced by a snapshot: begin to follow it anew"
                    )
                if self._position is None:
                    self._keep(self._committer.seq)
                    file, self._position = self._snapshot()
                    return FeedFile(file, snapshot=True)
                if self._committer.seq == self._position.seq:
                    return None
                with self._database.reading() as connection:
                    content, self._position = changes.collect(connection, self._position)
                self._keep(self._position.seq)
                return FeedFile(io.BytesIO(content), snapshot=False)

    def close(self) -> None:
        with self._busy:
            self._kept.close()

    def _keep(self, seq: int) -> bool:
        """Keeps the changes after a write instead of those kept before; returns whether they are there."""
        kept = contextlib.ExitStack()
        there = kept.enter_context(self._horizon.keeping(seq))
        self._kept.close()
        self._kept = kept
        return there
