"""What is kept of images, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import torch

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batch import Priority
from services.segmenter.backends.base import Embedding, Geometry
from services.segmenter.cache import EmbeddingCache


def embedding(values: int) -> Embedding:
    return Embedding((torch.zeros(values),), Geometry((1, 1), (1, 1), (1, 1), ()))


@dataclass
class Making:
    """An encoding that records the priorities of the calls that wait for it."""

    make: Callable[[], Awaitable[Embedding]]
    priorities: list[Priority] = field(default_factory=list)

    def escalate(self, priority: Priority) -> None:
        self.priorities.append(priority)


async def get(
    cache: EmbeddingCache, key: str, make: Callable[[], Awaitable[Embedding]]
) -> tuple[Embedding, bool]:
    return await cache.get(key, Making(make), Priority.INTERACTIVE)


async def test_the_embedding_cache_evicts_the_least_recently_used_to_stay_under_its_limit() -> None:
    cache = EmbeddingCache(max_bytes=100)

    async def make(values: int) -> Embedding:
        return embedding(values)

    for key in "abc":
        await get(cache, key, lambda: make(10))
    assert cache.nbytes == 80
    assert (await get(cache, "b", lambda: make(10)))[1]
    assert not (await get(cache, "a", lambda: make(10)))[1]
    assert (await get(cache, "b", lambda: make(10)))[1]
    assert not (await get(cache, "huge", lambda: make(1000)))[1]
    assert not (await get(cache, "huge", lambda: make(1000)))[1]
    assert cache.nbytes == 80


async def test_an_encoding_is_cancelled_with_the_last_call_that_waits_for_it() -> None:
    cache = EmbeddingCache(max_bytes=100)
    started, go = asyncio.Event(), asyncio.Event()
    cancelled = False

    async def slow() -> Embedding:
        nonlocal cancelled
        started.set()
        try:
            await go.wait()
        except asyncio.CancelledError:
            cancelled = True
            raise
        return embedding(1)

    first = asyncio.create_task(get(cache, "a", slow))
    second = asyncio.create_task(get(cache, "a", slow))
    await started.wait()
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    go.set()
    assert (await second)[0].nbytes == 4
    started.clear()
    go.clear()
    alone = asyncio.create_task(get(cache, "b", slow))
    await started.wait()
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    await asyncio.sleep(0)
    assert cancelled


async def test_a_failed_encoding_is_tried_again() -> None:
    cache = EmbeddingCache(max_bytes=100)

    async def fail() -> Embedding:
        raise RuntimeError("once")

    async def work() -> Embedding:
        return embedding(1)

    with pytest.raises(RuntimeError, match="once"):
        await get(cache, "a", fail)
    assert not (await get(cache, "a", work))[1]


@pytest.mark.parametrize("kind", [Kind.DEADLINE_EXCEEDED, Kind.OVERLOADED])
async def test_the_deadline_of_one_caller_does_not_fail_the_others_of_a_shared_encoding(kind: Kind) -> None:
    cache = EmbeddingCache(max_bytes=100)
    go = asyncio.Event()

    async def impatient() -> Embedding:
        await go.wait()
        raise RegionSearchError(kind, "the first caller's deadline, or its priority")

    async def patient() -> Embedding:
        return embedding(1)

    first = asyncio.create_task(get(cache, "a", impatient))
    await asyncio.sleep(0)
    others = [asyncio.create_task(get(cache, "a", patient)) for _ in range(2)]
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(RegionSearchError):
        await first
    assert [(await other)[0].nbytes for other in others] == [4, 4]


async def test_a_shared_encoding_takes_the_most_urgent_priority_of_its_callers() -> None:
    cache = EmbeddingCache(max_bytes=100)

    async def work() -> Embedding:
        return embedding(1)

    first, second = Making(work), Making(work)
    await asyncio.gather(cache.get("a", first, Priority.BULK), cache.get("a", second, Priority.INTERACTIVE))
    assert (first.priorities, second.priorities) == ([Priority.BULK, Priority.INTERACTIVE], [])
