"""Work in pieces: the first is admitted or refused, the others are taken."""

import asyncio

import pytest

from regionsearch.errors import Kind, RegionSearchError
from tests.runtime.batchers import answer, batching, flat, held


async def test_a_full_queue_admits_continuations():
    async with batching(max_queue=10) as (batcher, model):
        holders = await held(batcher, model)
        waiting = asyncio.create_task(batcher.submit("waiting", 10))
        await asyncio.sleep(0)
        with pytest.raises(RegionSearchError) as refused:
            await batcher.submit("new", 4)
        assert refused.value.kind is Kind.OVERLOADED
        continuation = asyncio.create_task(batcher.submit("begun", 4, continuation=True))
        await asyncio.sleep(0)
        assert batcher.waiting == 14
        model.gate.set()
        assert flat(await continuation) == answer("begun", 4)
        await asyncio.gather(waiting, *holders)


async def test_the_deadline_of_a_call_holds_for_its_continuations():
    async with batching() as (batcher, _):
        with pytest.raises(RegionSearchError) as late:
            await batcher.submit("late", 1, continuation=True, deadline=asyncio.get_running_loop().time() - 1)
        assert late.value.kind is Kind.DEADLINE_EXCEEDED
