"""Threads in which calls wait for the engine, and how many may wait for a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from regionsearch.errors import overloaded
from services.searcher.callers import Caller

T = TypeVar("T")


class Calls:
    """One kind of call: a crowd of one kind does not keep the others waiting.

    Args:
        name: Of the threads, and for the error.
        threads: Calls that run at once.
        max_waiting: Calls that may wait beside them; more are refused at once.
    """

    def __init__(self, name: str, threads: int, max_waiting: int) -> None:
        self._name = name
        self._limit = threads + max_waiting
        self._inside = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[[], T], caller: Caller | None = None) -> T:
        """Runs a blocking function. One that waits for its thread never runs if the task is cancelled.

        Args:
            function: What to do.
            caller: Told when the task is cancelled, so that a function that has begun can stop.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        with self._lock:
            if self._inside >= self._limit:
                raise overloaded(f"{self._inside} calls ({self._name}) are waiting", retry_after_s=0.2)
            self._inside += 1
        future = self._executor.submit(function)
        future.add_done_callback(self._leave)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if caller is not None:
                caller.leave()
            raise

    def close(self) -> None:
        """Waits for what is running."""
        self._executor.shutdown()

    def _leave(self, future: Future[T]) -> None:
        with self._lock:  # a thread that goes on after its caller has left still counts
            self._inside -= 1
