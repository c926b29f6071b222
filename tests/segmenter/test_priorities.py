"""Clicks behind everything mode, on a model as slow as the test wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batch import BatchSettings, Priority
from services.segmenter.backends.base import Embedding, PromptBatch
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import CallContext
from services.segmenter.engine import SegmentEngine
from tests.segmenter.test_engine import CLICK, GRID, lazy_image
from tests.waiting import until

PIECE = 4


class Stepped:
    """Decodes one batch for each permit; tells which it began."""

    def __init__(self, backend: SamBackend) -> None:
        self._backend = backend
        self.permits = threading.Semaphore(0)
        self.began: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Any:
        self.began.append(len(prompts))
        assert self.permits.acquire(timeout=60)
        return self._backend.decode(embedding, prompts)


@asynccontextmanager
async def stepping(backend: SamBackend, **options: Any) -> AsyncIterator[tuple[SegmentEngine, Stepped]]:
    stepped = Stepped(backend)
    settings = BatchSettings(**{"max_batch": PIECE, "max_delay_s": 0} | options)
    engine = SegmentEngine(stepped, settings, cache_bytes=1 << 24)
    try:
        yield engine, stepped
    finally:
        stepped.permits.release(10_000)
        await engine.close()


@pytest.mark.parametrize("priority", [Priority.INTERACTIVE, Priority.BULK])
async def test_a_click_waits_for_one_piece_of_everything_mode(
    untrained: SamBackend, priority: Priority
) -> None:
    async with stepping(untrained) as (engine, backend):
        search = engine.everything(
            lazy_image(1), replace(GRID, points_per_side=16), call=CallContext(priority)
        )
        everything = asyncio.create_task(search)
        for round_ in range(1, 6):
            await until(lambda round_=round_: backend.began == [PIECE, 1] * (round_ - 1) + [PIECE])
            click = asyncio.create_task(engine.prompts(lazy_image(1), [CLICK]))
            ready = engine.queue.batcher._devices[0]._ready._ready
            await until(lambda ready=ready: ready[Priority.INTERACTIVE])
            backend.permits.release(2)  # the piece that runs, and the click
            await click
        assert not everything.done()
        backend.permits.release(10_000)
        await everything


async def test_a_click_escalates_the_encoding_of_a_bulk_call(
    untrained: SamBackend,
) -> None:
    async with stepping(untrained) as (engine, backend):
        bulk = CallContext(Priority.BULK)
        search = engine.everything(lazy_image(1), replace(GRID, points_per_side=32), call=bulk)
        waiting = [asyncio.create_task(search)]
        await until(lambda: backend.began)
        waiting.append(asyncio.create_task(engine.prompts(lazy_image(2), [CLICK], call=bulk)))
        await until(lambda: engine.queue.cache._flights)
        click = asyncio.create_task(engine.prompts(lazy_image(2), [CLICK]))
        while not click.done():
            backend.permits.release()
            await asyncio.sleep(0.05)
        assert backend.began.count(PIECE) < 32 * 32 / PIECE / 2
        backend.permits.release(10_000)
        await asyncio.gather(*waiting)


async def test_clicks_do_not_starve_everything_mode(untrained: SamBackend) -> None:
    async with stepping(untrained) as (engine, backend):
        await_free = asyncio.create_task(engine.prompts(lazy_image(1), [CLICK]))
        backend.permits.release(10_000)
        await await_free
        everything = asyncio.create_task(
            engine.everything(lazy_image(1), GRID, call=CallContext(Priority.BULK))
        )

        async def clicker() -> None:
            while not everything.done():
                await engine.prompts(lazy_image(1), [CLICK])

        await asyncio.gather(*(clicker() for _ in range(12)))
        assert (await everything).regions


async def test_a_refused_click_says_why(untrained: SamBackend) -> None:
    """Errors of the queue arrive as they are, however many batches a call has."""

    async with stepping(untrained) as (engine, backend):
        backend.permits.release()
        await engine.prompts(lazy_image(1), [CLICK])
        late = CallContext(deadline=asyncio.get_running_loop().time() + 1)
        box = replace(CLICK, box=(1.0, 2.0, 30.0, 40.0))
        with pytest.raises(RegionSearchError) as caught:
            await engine.prompts(lazy_image(1), [CLICK, box], call=late)
        assert caught.value.kind is Kind.DEADLINE_EXCEEDED
