"""The segmenter without its transport: images and options in, regions out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import invalid, too_large
from regionsearch.prompts import check_box, check_point
from services.runtime.batcher import BatchSettings, Priority
from services.runtime.memory import MemoryBudget
from services.segmenter.backends.base import Backend, Embedding, Size
from services.segmenter.call_context import INTERACTIVE, CallContext, Everything, LazyImage, Prompted
from services.segmenter.everything import Candidate, Region, deduplicate, draw_candidates, finish_image
from services.segmenter.features import pool_features
from services.segmenter.grid import Crop, grid_points, plan_crops
from services.segmenter.options import EverythingOptions, SelectionOptions
from services.segmenter.pipeline import Pipeline
from services.segmenter.prompts import Prompt, PromptedRegion, without_logits
from services.segmenter.refine.mask_refiner import MaskRefiner
from services.segmenter.selection import select_regions
from services.segmenter.tasks import REFINE_ITEMS, DrawTask, EncodeTask, GridTask, joined

PROMPT_PIECE = 128  # prompts of a call that are answered at a time
GRID_PIECE = 1024  # grid points of a call that are in the queue at a time; then others have their turn


class SegmentEngine:
    """Answers calls; lives on the event loop on which it was made.

    Images, pieces of everything mode's grid and prompts of all callers go through one queue to the one
    thread that owns the model, interactive ones first.

    Args:
        backend: The model.
        batching: Its `max_batch` is the number of grid points that run at once, and so what a click waits for
            behind everything mode.
        cache_bytes: Device memory for embeddings of images seen before.
        max_candidate_bytes: Memory for the masks of a crop, before duplicates among them are dropped.
        on_fatal: Called with the reason when the device is lost.
    """

    def __init__(
        self,
        backend: Backend,
        batching: BatchSettings,
        *,
        cache_bytes: int,
        max_candidate_bytes: int = 1 << 30,
        on_fatal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.backend = backend
        self.pipeline = Pipeline(backend, batching, cache_bytes=cache_bytes, on_fatal=on_fatal)
        self._max_candidate_bytes = max_candidate_bytes
        self._pixels = MemoryBudget(batching.max_bytes)

    async def close(self) -> None:
        """Ends the threads, once what was admitted is done."""
        await self.pipeline.batcher.close()

    async def everything(
        self,
        picture: LazyImage,
        options: EverythingOptions,
        selection: SelectionOptions | None = None,
        *,
        features: bool = False,
        call: CallContext = INTERACTIVE,
    ) -> Everything:
        """Finds every region of an image.

        Args:
            picture: To cut up.
            options: Of the search, checked.
            selection: Keeps what is worth indexing; None keeps all, in the reference's order.
            features: Adds pooled encoder features.
            call: Who waits, and until when.

        Returns:
            The regions.

        Raises:
            RegionSearchError: The image cannot be decoded, its masks take too much memory, or the queue is
                full.
        """
        call = replace(call, priority=max(call.priority, Priority.STANDARD))
        whole, cached = await self.pipeline.embed(picture, call, options.points)
        if not cached:
            call = replace(call, continuation=True)
        first, *others = plan_crops(whole.geometry.image_size, options)
        regions = await self._search(whole, first, whole, options, call)
        call = replace(call, continuation=True)
        if others:
            async with self._pixels.hold(picture.nbytes):
                pixels = await asyncio.to_thread(picture.decode)
                for crop in others:
                    part = EncodeTask(functools.partial(crop.cut, pixels), 0)
                    embedding = await self.pipeline.encode(part, call)
                    regions += await self._search(embedding, crop, whole, options, call)
        return await asyncio.to_thread(self._finish, whole, regions, options, selection, features, cached)

    async def _search(
        self,
        embedding: Embedding,
        crop: Crop,
        whole: Embedding,
        options: EverythingOptions,
        call: CallContext,
    ) -> list[Region]:
        size = whole.geometry.image_size
        points = grid_points(crop, options)
        candidates: list[Candidate] = []
        for start in range(0, len(points), GRID_PIECE):
            search = GridTask(embedding, crop, points[start : start + GRID_PIECE], size, options)
            candidates += joined(await self.pipeline.submit(search, call))
            call = replace(call, continuation=True)
            if sum(candidate.nbytes for candidate in candidates) > self._max_candidate_bytes:
                raise too_large(
                    "everything.points_per_side",
                    f"the masks of {start + len(search)} grid points take more than "
                    f"{self._max_candidate_bytes} bytes (max_candidate_bytes); raise pred_iou_thresh or "
                    "stability_score_thresh, or lower points_per_side",
                )
        found = await asyncio.to_thread(deduplicate, candidates, options)
        if not found:
            return []
        with contextlib.suppress(Exception):
            return await asyncio.to_thread(draw_candidates, self.backend, embedding, crop, found, size)
        # That was beside the queue, where it would stand behind the grids of later calls. What the device had
        # no room for meanwhile gets its turn there, and what is wrong with it is found out there.
        return joined(await self.pipeline.submit(DrawTask(embedding, crop, found, size), call))

    def _finish(
        self,
        whole: Embedding,
        regions: list[Region],
        options: EverythingOptions,
        selection: SelectionOptions | None,
        features: bool,
        cached: bool,
    ) -> Everything:
        regions = finish_image(regions, options)
        if selection is not None:
            regions = select_regions(regions, selection)
        pooled = pool_features(whole, regions) if features else None
        return Everything(regions, pooled, whole.geometry.image_size, cached)

    async def prompts(
        self,
        picture: LazyImage,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        zoom: bool = False,
        features: bool = False,
        logits: bool = True,
        call: CallContext = INTERACTIVE,
    ) -> Prompted:
        """Finds the object of each prompt.

        Args:
            picture: To look at.
            prompts: One object each.
            multimask: Three masks for each prompt instead of one.
            zoom: Looks more closely at what was found, see `zoom.py`; the first mask of an answer is what
                comes of it. Its `low_res_logits` are those of an earlier look.
            features: Adds pooled encoder features.
            logits: Keeps the `low_res_logits`, which are far larger than all else of an answer.
            call: Who waits, and until when.

        Returns:
            The answers, in the order of the prompts.

        Raises:
            RegionSearchError: The image cannot be decoded, a prompt does not fit it, or the queue is full.
        """
        closer_looks = len(prompts) * REFINE_ITEMS if zoom and self.backend.refiner else 0
        embedding, cached = await self.pipeline.embed(picture, call, len(prompts) + closer_looks)
        self._check(prompts, embedding.geometry.image_size)
        size = embedding.geometry.image_size
        if not cached:  # the call was judged with its encoding; what is cached has not been in the queue
            call = replace(call, continuation=True)
        whole = Crop.whole(size)
        closer = MaskRefiner(
            self.pipeline, picture, embedding.geometry, multimask, replace(call, continuation=True)
        )
        answers: list[list[PromptedRegion]] = []
        for start in range(0, len(prompts), PROMPT_PIECE):
            some = prompts[start : start + PROMPT_PIECE]
            later = len(prompts) - start - len(some) + closer_looks
            found = await self.pipeline.answer(embedding, whole, some, multimask, size, call, more=later)
            if zoom:
                found = await closer.improve(some, found)
            answers += found if logits else [list(map(without_logits, answer)) for answer in found]
            call = replace(call, continuation=True)
        pooled = await asyncio.to_thread(_pool_answers, embedding, answers) if features else None
        return Prompted(answers, pooled, size, cached)

    def _check(self, prompts: Sequence[Prompt], size: Size) -> None:
        mask_size = self.backend.mask_size
        for index, prompt in enumerate(prompts):
            name = f"prompts.prompts[{index}]"
            for place, point in enumerate(prompt.points.tolist()):
                check_point(point, size, f"{name}.points[{place}]")
            if prompt.box is not None:
                check_box(prompt.box, size, f"{name}.box")
            if prompt.mask is not None and prompt.mask.size != size:
                raise invalid(
                    f"{name}.mask",
                    f"{name}.mask is {prompt.mask.size[0]} x {prompt.mask.size[1]}, the image {size[0]} x "
                    f"{size[1]}; send a mask as large as the image",
                )
            if prompt.mask_logits is not None and prompt.mask_logits.shape != mask_size:
                raise invalid(
                    f"{name}.mask_logits",
                    f"{name}.mask_logits has shape {list(prompt.mask_logits.shape)}; this model takes "
                    f"{list(mask_size)}, as in the low_res_logits of its answers",
                )


def _pool_answers(
    embedding: Embedding, answers: Sequence[Sequence[PromptedRegion]]
) -> list[NDArray[np.float32]]:
    return [pool_features(embedding, [candidate.region for candidate in answer]) for answer in answers]
