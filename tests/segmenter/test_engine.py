"""Many callers at once: each gets its own answer and waits for at most one piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batch import BatchSettings, Priority
from services.segmenter.backends.base import Embedding
from services.segmenter.backends.sam import SamBackend
from services.segmenter.call_context import CallContext, LazyImage
from services.segmenter.engine import SegmentEngine
from services.segmenter.everything import Region
from services.segmenter.options import EverythingOptions, SelectionOptions
from services.segmenter.prompts import Prompt

GRID = EverythingOptions(
    points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9
)
CLICK = Prompt(np.array([[20.0, 30.0]]), np.array([1], np.int32))


class Watched:
    """A backend that tells what ran."""

    def __init__(self, backend: SamBackend) -> None:
        self._backend = backend
        self.log: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, prepared: Sequence[Any]) -> list[Embedding]:
        self.log += ["encode"] * len(prepared)
        return self._backend.encode(prepared)

    def decode(self, embedding: Embedding, prompts: Any) -> Any:
        self.log.append(f"decode {len(prompts)}")
        return self._backend.decode(embedding, prompts)


@asynccontextmanager
async def engine_for(
    backend: Any, *, max_batch: int = 8, cache_bytes: int = 1 << 24
) -> AsyncIterator[SegmentEngine]:
    engine = SegmentEngine(backend, BatchSettings(max_batch=max_batch), cache_bytes=cache_bytes)
    try:
        yield engine
    finally:
        await engine.close()


def lazy_image(seed: int, size: tuple[int, int] = (60, 80)) -> LazyImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return LazyImage(f"{seed}", lambda: pixels)


async def test_thirty_two_callers_get_their_own_answers(untrained: SamBackend) -> None:
    async def answer(engine: SegmentEngine, number: int) -> list[Region]:
        image = lazy_image(number % 5, (60 + number % 5, 80))
        call = CallContext(Priority.BULK if number % 3 == 0 else Priority.INTERACTIVE)
        if number % 2:
            return (await engine.everything(image, GRID, call=call)).regions
        clicks = [CLICK, replace(CLICK, points=np.array([[float(number), 9.0]]))]
        found = await engine.prompts(image, clicks, multimask=True, call=call)
        return [candidate.region for each in found.answers for candidate in each]

    async with engine_for(untrained) as engine:
        together = await asyncio.gather(*(answer(engine, number) for number in range(32)))
    async with engine_for(untrained, cache_bytes=0) as engine:
        alone = [await answer(engine, number) for number in range(32)]
    for ours, theirs in zip(together, alone, strict=True):
        assert [(one.runs.coco_rle(), one.box) for one in ours] == [
            (one.runs.coco_rle(), one.box) for one in theirs
        ]
        ious = [[one.predicted_iou for one in regions] for regions in (ours, theirs)]
        np.testing.assert_allclose(*ious, atol=1e-4)  # sums of a batch have another order in another batch
    assert sum(map(len, together)) > 64


async def test_concurrent_calls_encode_one_image_once(untrained: SamBackend) -> None:
    backend = Watched(untrained)
    async with engine_for(backend) as engine:
        found = await asyncio.gather(*(engine.prompts(lazy_image(1), [CLICK]) for _ in range(6)))
        again = await engine.prompts(lazy_image(1), [CLICK])
    assert backend.log.count("encode") == 1
    assert again.cached
    assert not found[0].cached


async def test_cancelling_frees_the_device(untrained: SamBackend) -> None:
    backend = Watched(untrained)
    async with engine_for(backend, max_batch=4) as engine:
        grid = replace(GRID, points_per_side=48)
        task = asyncio.create_task(engine.everything(lazy_image(1), grid))
        while backend.log.count("decode 4") < 2:  # noqa: ASYNC110 (another thread writes the log)
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.prompts(lazy_image(2), [CLICK])
    assert backend.log.count("decode 4") < 48 * 48 / 4 / 2


async def test_an_image_that_cannot_be_decoded_fails_alone(untrained: SamBackend) -> None:
    def broken() -> NDArray[np.uint8]:
        raise RegionSearchError(Kind.UNSUPPORTED_IMAGE, "image is damaged", field="image")

    async with engine_for(untrained) as engine:
        bad = engine.prompts(LazyImage("bad", broken), [CLICK])
        results = await asyncio.gather(
            bad, *(engine.prompts(lazy_image(seed), [CLICK]) for seed in range(4)), return_exceptions=True
        )
    assert isinstance(results[0], RegionSearchError)
    assert not any(isinstance(result, BaseException) for result in results[1:])


async def test_a_fine_grid_is_searched_piece_by_piece(
    untrained: SamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_for(untrained) as engine:
        whole = (await engine.everything(lazy_image(1), GRID)).regions
        monkeypatch.setattr("services.segmenter.everything_search.GRID_PIECE", 8)
        pieces = (await engine.everything(lazy_image(1), GRID)).regions
    assert [region.runs.coco_rle() for region in pieces] == [region.runs.coco_rle() for region in whole]


async def test_masks_that_take_too_much_memory_are_refused_by_name(untrained: SamBackend) -> None:
    batching = BatchSettings(max_batch=8)
    engine = SegmentEngine(untrained, batching, cache_bytes=1 << 24, max_candidate_bytes=1000)
    with pytest.raises(RegionSearchError) as caught:
        await engine.everything(lazy_image(1), GRID)
    assert (caught.value.kind, caught.value.field) == (Kind.TOO_LARGE, "everything.points_per_side")
    assert (await engine.prompts(lazy_image(1), [CLICK])).answers
    await engine.close()


async def test_selection_and_features_come_with_everything(untrained: SamBackend) -> None:
    selection = SelectionOptions(0, 1, max_area_fraction=1.0, mask_nms_thresh=1.0, max_regions=3)
    async with engine_for(untrained) as engine:
        found = await engine.everything(
            lazy_image(3), replace(GRID, box_nms_thresh=1.0), selection, features=0
        )
    assert len(found.regions) == 3
    assert found.features is not None
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-5)
