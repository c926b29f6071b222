"""A thread pool for blocking calls, with a bound on the calls and bytes that wait for a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from regionsearch.errors import RegionSearchError, overloaded
from services.searcher.cancellation import CancellationToken

T = TypeVar("T")

_POLL_S = 0.02


class BoundedExecutor:
    """Runs calls of one kind, so that many calls of one kind do not delay those of another.

    Args:
        name: Names the threads, and the kind of call in errors.
        threads: Calls that run at once.
        max_waiting: Calls that may wait in addition; more are refused at once.
        max_bytes: Memory that calls may need, running and waiting; more are refused at once. A single one may
            need more.
        setting: Names the setting of `max_bytes`, for the error.
    """

    def __init__(
        self, name: str, threads: int, max_waiting: int, max_bytes: float = float("inf"), setting: str = ""
    ) -> None:
        self._name = name
        self._limit = threads + max_waiting
        self._max_bytes = max_bytes
        self._setting = setting
        self._inside = 0
        self._bytes = 0
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(
        self, function: Callable[[], T], cancellation: CancellationToken | None = None, nbytes: int = 0
    ) -> T:
        """Runs a blocking function. One that waits for its thread never runs if the task is cancelled.

        Args:
            function: What to do.
            cancellation: Told when the task is cancelled, so that a function that has begun can stop.
            nbytes: Memory that it needs.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        with self._lock:
            refusal = self._refusal(nbytes)
            if refusal is not None:
                raise refusal
            self._inside += 1
            self._bytes += nbytes
        future = self._executor.submit(_in_memory, function)
        future.add_done_callback(partial(self._leave, nbytes))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if cancellation is not None:
                cancellation.cancel()
            raise

    async def run_in_turn(self, function: Callable[[], T], nbytes: int) -> T:
        """Runs the next part of a call that has begun: it waits instead of being refused.

        Raises:
            RegionSearchError: OVERLOADED when waiting calls already need all the memory that there is.
        """
        if self._waiting_bytes and self._waiting_bytes + nbytes > self._max_bytes:
            raise self._too_many_bytes()
        self._waiting_bytes += nbytes
        try:
            while self._refusal(nbytes) is not None:  # noqa: ASYNC110  # threads change it
                await asyncio.sleep(_POLL_S)
        finally:
            self._waiting_bytes -= nbytes
        return await self.run(function, nbytes=nbytes)

    def close(self) -> None:
        """Waits for what is running."""
        self._executor.shutdown()

    def _refusal(self, nbytes: int) -> RegionSearchError | None:
        if self._inside >= self._limit:
            return overloaded(f"{self._inside} calls ({self._name}) are in progress", retry_after_s=0.2)
        if nbytes and self._bytes and self._bytes + nbytes > self._max_bytes:
            return self._too_many_bytes()
        return None

    def _too_many_bytes(self) -> RegionSearchError:
        return overloaded(
            f"{self._name} that need {self._bytes >> 20} MiB are in progress ({self._setting}): retry "
            "later, or send less at once",
            retry_after_s=0.5,
        )

    def _leave(self, nbytes: int, future: Future[T]) -> None:
        with self._lock:  # a thread that goes on after its caller has left still counts
            self._inside -= 1
            self._bytes -= nbytes


def _in_memory(function: Callable[[], T]) -> T:
    """Turns running out of memory into an error that may be retried."""
    try:
        return function()
    except MemoryError as error:
        raise overloaded("not enough memory for this call: ask for less, or retry later", 5.0) from error
