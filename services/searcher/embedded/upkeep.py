"""What happens beside the traffic: forgetting removed rows, in small steps."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque

import structlog

from regionsearch.errors import RegionSearchError
from services.searcher.embedded import writes
from services.searcher.embedded.committer import Committer
from services.searcher.embedded.gate import Gate

_log = structlog.get_logger(__name__)
_TICK_S = 1.0
_PURGE_ROWS = 2000
_PURGE_PAGES = 256


class Horizon:
    """The oldest write whose state can still be shown: that of `ttl_s` seconds ago.

    Args:
        ttl_s: How long states are kept.
        seq: The present write; nothing older can be shown.
    """

    def __init__(self, ttl_s: float, seq: int) -> None:
        self._ttl_s = ttl_s
        self._seq = seq
        self._marks: deque[tuple[float, int]] = deque()

    @property
    def seq(self) -> int:
        """The oldest write that a page may be pinned to."""
        return self._seq

    def advance(self, seq: int) -> None:
        """Notes the present write and forgets what is too old."""
        now = time.monotonic()
        self._marks.append((now, seq))
        while self._marks and self._marks[0][0] <= now - self._ttl_s:
            self._seq = self._marks.popleft()[1]

    def reset(self, seq: int) -> None:
        """Forgets every state before write `seq`."""
        self._marks.clear()
        self._seq = seq


class Upkeep:
    """A thread that wakes every second.

    Args:
        committer: Where its writes go.
        horizon: What may be forgotten.
        gate: Closed during a restore.
    """

    def __init__(self, committer: Committer, horizon: Horizon, gate: Gate) -> None:
        self._committer = committer
        self._horizon = horizon
        self._gate = gate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def tick(self) -> None:
        """One round of everything that is due."""
        self._horizon.advance(self._committer.seq)
        while not self._stop.is_set() and self._purge():
            pass

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            with contextlib.suppress(RegionSearchError):  # stopping, restoring, or a disk that refuses writes
                self.tick()

    def _purge(self) -> bool:
        """Frees some removed rows on disk; whether there may be more."""
        horizon = self._horizon.seq

        def operation(connection: sqlite3.Connection) -> tuple[int, None]:
            freed = writes.purge(connection, horizon, _PURGE_ROWS)
            if freed:
                connection.execute(f"PRAGMA incremental_vacuum({_PURGE_PAGES})").fetchall()
            return freed, None

        with self._gate.shared():
            return self._committer.submit(operation).result() > 0
