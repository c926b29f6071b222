"""Batches in front of a device: which one is next, and which of them run as one."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterable, Sequence

from services.runtime.batch import Batch, Priority

MAX_BYPASS = 8  # batches that may pass one of a lower priority before that one has its turn
# Batches of other callers, of lower priorities, that go before one of callers with several requests.
CROWD_YIELDS = 3


class ReadyQueue:
    """Batches that wait for a device: the first priority goes first, and no priority starves.

    Within a priority batches go in the fair order of their callers, so that a batch of a caller with few
    requests passes one that was ready earlier. Small ones that follow each other run as one.

    A call of several pieces submits each piece after the answer to the one before. If it is its caller's only
    call, the device waits a moment for the next piece (:meth:`expect`) before it starts a batch of callers
    with many requests: otherwise each piece would wait for one of their batches.

    After `MAX_BYPASS` batches that passed others, one of these is next; and only one, so that the first
    priority never waits for two of them in a row. Callers with many requests do not have that precedence over
    the lower priorities of others: `CROWD_YIELDS` batches of others go before each of theirs.

    Args:
        max_batch: Most items that run as one.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._changed = threading.Condition()
        self._ready: dict[Priority, list[tuple[float, int, Batch, Exception | None]]] = {
            priority: [] for priority in Priority
        }
        self._arrivals = 0
        self._last_turn = dict.fromkeys(Priority, 0)
        self._turns = 0
        self._passed = 0
        self._yielded = 0
        self._expected: frozenset[str] = frozenset()  # callers
        self._expected_until = 0.0
        self._closed = False

    def expect(self, callers: Iterable[str], seconds: float) -> None:
        """Has :meth:`get` prefer the next batch of these callers to one of callers with many requests."""
        with self._changed:
            self._expected = frozenset(callers)
            self._expected_until = time.monotonic() + seconds

    def put(self, batch: Batch, error: Exception | None = None) -> None:
        """Adds a batch, or returns one with the error of its last stage."""
        with self._changed:
            self._arrivals += 1
            heapq.heappush(self._ready[batch.priority], (batch.turn, self._arrivals, batch, error))
            if not self._expected.isdisjoint(request.caller for request in batch.requests):
                self._expected_until = 0.0
            self._changed.notify()

    def close(self) -> None:
        """Makes :meth:`get` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> tuple[Batch, Exception | None] | None:
        """Waits for the next batch."""
        with self._changed:
            while True:
                waiting = [priority for priority in Priority if self._ready[priority]]
                if waiting:
                    left = self._expected_until - time.monotonic()
                    if left <= 0 or self._ready[waiting[0]][0][2].sparse:
                        break
                    self._changed.wait(left)
                elif self._closed:
                    return None
                else:
                    self._changed.wait()
            first, *passed = waiting
            late = passed and self._is_turn_of(passed, first)
            priority = min(passed, key=self._last_turn.__getitem__) if late else first
            self._passed = self._passed + 1 if passed and not late else 0
            self._yielded = self._yielded + 1 if late else 0
            self._turns += 1
            self._last_turn[priority] = self._turns
            return self._take(self._ready[priority])

    def __bool__(self) -> bool:
        return any(self._ready.values())

    def _take(
        self, ready: list[tuple[float, int, Batch, Exception | None]]
    ) -> tuple[Batch, Exception | None]:
        """The first batch of a priority, with those after it that can run with it."""
        _, _, batch, error = heapq.heappop(ready)
        batch.begun = True
        while ready and error is None and ready[0][3] is None and batch.takes(ready[0][2], self._max_batch):
            other = heapq.heappop(ready)[2]
            other.begun = True
            batch.join(other)
        return batch, error

    def _is_turn_of(self, passed: Sequence[Priority], first: Priority) -> bool:
        """Whether a batch of the bypassed priorities goes before one of the first."""
        batch = self._ready[first][0][2]
        if not batch.sparse:
            crowd = {request.caller for request in batch.requests}
            others = (
                request.caller for priority in passed for request in self._ready[priority][0][2].requests
            )
            if not crowd.issuperset(others):
                return self._yielded < CROWD_YIELDS
        return self._passed >= MAX_BYPASS
