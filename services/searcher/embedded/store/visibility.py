"""The visibility horizon: which past states of the store can still be searched."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from regionsearch.errors import Kind, RegionSearchError


class VisibilityHorizon:
    """The oldest write whose state is kept: that of `ttl_s` seconds ago, or one that a search still reads.

    Rows that were removed up to this write are invisible to every search and may be vacuumed. Safe to use
    from several threads.

    Args:
        ttl_s: How long states are kept.
        present: Returns the last write. No state before the one at start can be searched.
    """

    def __init__(self, ttl_s: float, present: Callable[[], int]) -> None:
        self._ttl_s = ttl_s
        self._present = present
        self._seq = self._due = present()
        self._marks: deque[tuple[float, int]] = deque()
        self._held: list[int] = []
        self._lock = threading.Lock()

    @property
    def seq(self) -> int:
        """The oldest write whose state is kept."""
        return self._seq

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
            self._seq = max(self._seq, min([self._due, *self._held]))

    def reset(self) -> None:
        """After a restore: moves the horizon to the last write."""
        with self._lock:
            self._marks.clear()
            self._seq = self._due = self._present()
