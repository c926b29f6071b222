"""Many chunks of work over many replicas at once, the answers in the order of the chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Chunk = TypeVar("Chunk")
Answer = TypeVar("Answer")


def chunked(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive slices of at most `size` items, as equal as possible: 65 become 33 and 32, not 64 and 1."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[len(items) * index // count : len(items) * (index + 1) // count]


async def fan_out(
    call: Callable[[Chunk], Awaitable[Answer]], chunks: Sequence[Chunk], concurrency: int = 8
) -> list[Answer]:
    """Calls for every chunk on the event loop, up to `concurrency` at a time.

    The first failure cancels the other calls and is raised as it is, not in a group.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(chunk: Chunk) -> Answer:
        async with gate:
            return await call(chunk)

    return await gather_or_cancel(*(one(chunk) for chunk in chunks))


async def gather_or_cancel(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all, in their order; the first failure cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
