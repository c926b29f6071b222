"""A call of many pieces is admitted once, with its first: a full queue does not end it half-way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.segmenter import everything_search
from services.segmenter.backends.sam import SamBackend
from tests.segmenter.test_engine import CLICK, GRID, lazy_image
from tests.segmenter.test_priorities import stepping
from tests.waiting import until

SEARCH = replace(GRID, points_per_side=16)


async def test_later_pieces_of_a_grid_are_admitted_to_a_full_queue(
    untrained: SamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything_search, "GRID_PIECE", 8)
    async with stepping(untrained, max_queue=10) as (engine, backend):
        continuation = asyncio.create_task(engine.everything(lazy_image(1), SEARCH))
        await until(lambda: backend.began)
        late = asyncio.create_task(engine.everything(lazy_image(2), SEARCH))
        await until(lambda: engine.queue.batcher.waiting > 10)  # as much as may wait, and more
        with pytest.raises(RegionSearchError) as caught:
            await engine.everything(
                lazy_image(1), SEARCH
            )  # whose image is known, so that it begins with a piece
        assert caught.value.kind is Kind.OVERLOADED
        backend.permits.release(10_000)
        assert (await continuation).image_size == (await engine.prompts(lazy_image(1), [CLICK])).image_size
        await asyncio.gather(late, return_exceptions=True)
