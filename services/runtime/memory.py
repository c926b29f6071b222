"""Memory that a process may spend on requests, counted in bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class MemoryBudget:
    """Bounds the bytes that are held at once; first come, first served; for one event loop.

    Args:
        max_bytes: The bound. A request for more than that is admitted alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, nbytes: int) -> AsyncIterator[None]:
        """Waits until `nbytes` are free and holds them for the body."""
        async with self._turn:
            while self._held and self._held + nbytes > self._max_bytes:
                self._left.clear()
                await self._left.wait()
            self._held += nbytes
        try:
            yield
        finally:
            self._held -= nbytes
            self._left.set()
