"""Waiting for what comes in its own time: as long as a busy machine may take, no longer than needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LIMIT_S = 120.0


def wait_for(condition: Callable[[], T], what: str = "what was waited for", limit_s: float = LIMIT_S) -> T:
    """Asks again and again, and returns the first answer that is true."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:.0f} s"
        time.sleep(0.01)
    return found


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """The same on an event loop, for conditions that no event announces."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
