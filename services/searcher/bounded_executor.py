"""A bounded thread pool for blocking calls, and their cancellation when a caller leaves or is out of time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from regionsearch.errors import Kind, RegionSearchError, overloaded


class CancellationToken:
    """Cancellation token for one call: the event loop sets it, the threads that work for the call check it.

    Args:
        remaining_s: Seconds until the deadline; None without one.
    """

    def __init__(self, remaining_s: float | None = None) -> None:
        self._deadline = None if remaining_s is None else time.monotonic() + remaining_s
        self._cancelled = False

    def remaining_s(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)

    def cancel(self) -> None:
        """Cancels the call."""
        self._cancelled = True

    def refusal(self) -> RegionSearchError | None:
        """CANCELLED or DEADLINE_EXCEEDED once the work should stop; None before."""
        if self._cancelled:
            return RegionSearchError(Kind.CANCELLED, "the caller has left")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return RegionSearchError(
                Kind.DEADLINE_EXCEEDED, "the deadline passed before the search began: allow more time"
            )
        return None

    def check(self) -> None:
        """Raises the refusal, if there is one."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal


NEVER_CANCELLED = CancellationToken()
"""The token of calls that are never cancelled."""


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
        self.admit(nbytes)
        future = self.submit(partial(_in_memory, function))
        future.add_done_callback(lambda _: self.leave(nbytes))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if cancellation is not None:
                cancellation.cancel()
            raise

    def admit(self, nbytes: int = 0) -> None:
        """Counts a call that needs so much memory, until it leaves.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        with self._lock:
            refusal = self._refusal(nbytes)
            if refusal is not None:
                raise refusal
            self._inside += 1
            self._bytes += nbytes

    def leave(self, nbytes: int = 0) -> None:
        """Ends what `admit` began: a thread that still works after its caller has left counts, too."""
        with self._lock:
            self._inside -= 1
            self._bytes -= nbytes

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function for calls that have been admitted, on the next free thread."""
        return self._executor.submit(function)

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


def _in_memory(function: Callable[[], T]) -> T:
    try:
        return function()
    except MemoryError as error:
        raise retryable(error) from error


def retryable(error: BaseException) -> BaseException:
    """The error of a call; running out of memory is one that may be retried."""
    if isinstance(error, MemoryError):
        return overloaded("not enough memory for this call: ask for less, or retry later", 5.0)
    return error
