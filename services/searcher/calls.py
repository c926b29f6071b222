"""Threads in which calls wait for the engine, and how many may wait for a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from regionsearch.errors import overloaded

T = TypeVar("T")


class Calls:
    """One kind of call: a crowd of one kind does not keep the others waiting. Lives on the event loop.

    Args:
        name: Of the threads, and for the error.
        threads: Calls that run at once.
        max_waiting: Calls that may wait beside them; more are refused at once.
    """

    def __init__(self, name: str, threads: int, max_waiting: int) -> None:
        self._name = name
        self._limit = threads + max_waiting
        self._inside = 0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[[], T]) -> T:
        """Runs a blocking function.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        if self._inside >= self._limit:
            raise overloaded(f"{self._inside} calls ({self._name}) are waiting", retry_after_s=0.2)
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Waits for what is running."""
        self._executor.shutdown()
