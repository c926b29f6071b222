"""The segmenter without its transport: images and options in, regions out."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.masks import RunLengthMask
from services.runtime.batcher import BatchSettings, Priority
from services.segmenter.backends.base import Backend, Embedding
from services.segmenter.call_context import (
    INTERACTIVE,
    CallContext,
    Everything,
    LazyImage,
    Pooled,
    Prompted,
)
from services.segmenter.choosing import choose_regions
from services.segmenter.everything import Region, check_mode, finish_image
from services.segmenter.everything_search import EverythingSearch
from services.segmenter.grid import Crop
from services.segmenter.model_queue import ModelQueue
from services.segmenter.options import EverythingOptions, Mode, SelectionOptions, planned_points
from services.segmenter.prompts import (
    NO_LOGITS,
    Prompt,
    PromptedRegion,
    check_prompts,
    without_logits,
)
from services.segmenter.refine.mask_refiner import MaskRefiner
from services.segmenter.regions import pool_features, select_regions
from services.segmenter.tasks import (
    PHRASE_ITEMS,
    REFINE_ITEMS,
    PhraseTask,
    joined,
)

PROMPT_PIECE = 128  # prompts of one call in the queue at a time


class SegmentEngine:
    """One model behind one queue, with a cache of image embeddings. Use it on the event loop that made it.

    Args:
        backend: The model.
        batching: See `ModelQueue`.
        cache_bytes: Device memory for embeddings of recent images.
        max_candidate_bytes: Memory for the masks of a crop before deduplication.
        on_fatal: Called with the reason when the device is lost.

    Attributes:
        backend: The model.
        queue: The model behind its queue.
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
        self.queue = ModelQueue(backend, batching, cache_bytes=cache_bytes, on_fatal=on_fatal)
        self._max_candidate_bytes = max_candidate_bytes

    async def close(self) -> None:
        """Waits for admitted requests, then stops the threads."""
        await self.queue.close()

    async def everything(
        self,
        image: LazyImage,
        options: EverythingOptions,
        selection: SelectionOptions | None = None,
        *,
        mode: Mode = Mode.GRID,
        features: int | None = None,
        call: CallContext = INTERACTIVE,
    ) -> Everything:
        """Finds every region of an image.

        Args:
            image: The image.
            options: Checked options of everything mode.
            selection: Keeps the regions worth indexing; None keeps all, in the reference's order.
            mode: Where to look.
            features: Adds features pooled from the encoder's map of this level; None for none.
            call: Priority and deadline.

        Raises:
            RegionSearchError: The image cannot be decoded, the model does not support the mode, the masks
                take too much memory, or the queue is full.
        """
        call = replace(call, priority=max(call.priority, Priority.STANDARD))
        check_mode(self.backend, mode)
        whole, cached = await self.queue.embed(image, call, planned_points(options, mode))
        if not cached:
            call = replace(call, continuation=True)
        regions = await self._search(image, options, mode).find(whole, call)
        finish = functools.partial(self._finish, whole, regions, options, selection, features, cached)
        return await self.queue.post_process(finish, whole)

    def _search(self, image: LazyImage, options: EverythingOptions, mode: Mode) -> EverythingSearch:
        return EverythingSearch(self.queue, image, options, mode, self._max_candidate_bytes)

    def _finish(
        self,
        whole: Embedding,
        regions: list[Region],
        options: EverythingOptions,
        selection: SelectionOptions | None,
        features: int | None,
        cached: bool,
    ) -> Everything:
        regions = finish_image(regions, options)
        if selection is not None:
            regions = select_regions(regions, selection)
        pooled = None
        if features is not None:
            pooled = _pool_with_image(whole, [region.runs for region in regions], features)
        return Everything(regions, pooled, whole.geometry.image_size, cached)

    async def pool(
        self, image: LazyImage, masks: Sequence[RunLengthMask], level: int, call: CallContext = INTERACTIVE
    ) -> Pooled:
        """Features of an image and of regions of it that are known.

        Args:
            image: The image.
            masks: The masks of the regions.
            level: Which of the encoder's maps they are pooled from.
            call: Priority and deadline.

        Raises:
            RegionSearchError: The image cannot be decoded, a mask is of another size, or the queue is full.
        """
        embedding, cached = await self.queue.embed(image, call)
        height, width = size = embedding.geometry.image_size
        for index, mask in enumerate(masks):
            if mask.size != size:
                field = f"known.masks[{index}]"
                raise invalid(
                    field,
                    f"{field} has {mask.size[0]} x {mask.size[1]} pixels, the image {height} x {width}: send "
                    "masks as large as the image",
                )
        pooled = await self.queue.post_process(
            functools.partial(_pool_with_image, embedding, masks, level), embedding
        )
        return Pooled(pooled, size, cached)

    async def prompts(
        self,
        image: LazyImage,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        zoom: bool = False,
        features: int | None = None,
        logits: bool = True,
        call: CallContext = INTERACTIVE,
    ) -> Prompted:
        """Finds the object of each prompt.

        Args:
            image: The image.
            prompts: One object each.
            multimask: Return three masks per prompt instead of one.
            zoom: Refine each answer in further passes around what was found, see `refine/`. The first mask of
                an answer is the refined one; its `low_res_logits` are those of an earlier pass.
            features: Adds features pooled from the encoder's map of this level; None for none.
            logits: Keep the `low_res_logits`, by far the largest part of an answer.
            call: Priority and deadline.

        Returns:
            The answers, in the order of the prompts.

        Raises:
            RegionSearchError: The image cannot be decoded, a prompt does not fit it, or the queue is full.
        """
        if self.backend.choices is not None:
            return await self._choose(image, prompts, self.backend.choices, features, call)
        refine_items = len(prompts) * REFINE_ITEMS if zoom and self.backend.refiner else 0
        embedding, cached = await self.queue.embed(image, call, len(prompts) + refine_items)
        size = embedding.geometry.image_size
        check_prompts(prompts, size, self.backend.mask_size)
        if not cached:  # the call was admitted with its encoding
            call = replace(call, continuation=True)
        whole = Crop.whole(size)
        refiner = MaskRefiner(
            self.queue, image, embedding.geometry, multimask, replace(call, continuation=True)
        )
        answers: list[list[PromptedRegion]] = []
        for start in range(0, len(prompts), PROMPT_PIECE):
            some = prompts[start : start + PROMPT_PIECE]
            later = len(prompts) - start - len(some) + refine_items
            found = await self.queue.answer(embedding, whole, some, multimask, size, call, more=later)
            if zoom:
                found = await refiner.improve(some, found)
            answers += found if logits else [list(map(without_logits, answer)) for answer in found]
            call = replace(call, continuation=True)
        pooled = await self.queue.post_process(
            functools.partial(_pool_answers, embedding, answers, features), embedding
        )
        return Prompted(answers, pooled, size, cached)

    async def phrases(
        self,
        image: LazyImage,
        phrases: Sequence[str],
        *,
        min_score: float,
        features: int | None = None,
        call: CallContext = INTERACTIVE,
    ) -> Prompted:
        """Finds all objects that each phrase names.

        Args:
            image: The image.
            phrases: At least one.
            min_score: Objects must score more.
            features: Adds features pooled from the encoder's map of this level; None for none.
            call: Priority and deadline.

        Raises:
            RegionSearchError: FAILED_PRECONDITION when the model does not take phrases; the image cannot be
                decoded, or the queue is full.
        """
        finder = self.backend.phrase_finder
        if finder is None:
            raise RegionSearchError(
                Kind.FAILED_PRECONDITION,
                f"{self.backend.identity.variant} does not take phrases; give points or boxes, ask for "
                "everything, or serve sam3",
                field="phrases.texts",
            )
        embedding, cached = await self.queue.embed(image, call, len(phrases) * PHRASE_ITEMS)
        if not cached:
            call = replace(call, continuation=True)
        answers = []
        for place, phrase in enumerate(phrases):
            task = PhraseTask(embedding, phrase, min_score)
            found = joined(await self.queue.submit(task, call, (len(phrases) - 1 - place) * PHRASE_ITEMS))
            answers.append([PromptedRegion(region, NO_LOGITS) for region in found])
            call = replace(call, continuation=True)
        truncated = await asyncio.to_thread(lambda: tuple(map(finder.is_truncated, phrases)))
        pooled = await self.queue.post_process(
            functools.partial(_pool_answers, embedding, answers, features), embedding
        )
        return Prompted(answers, pooled, embedding.geometry.image_size, cached, truncated)

    async def _choose(
        self,
        image: LazyImage,
        prompts: Sequence[Prompt],
        options: EverythingOptions,
        features: int | None,
        call: CallContext,
    ) -> Prompted:
        embedding, cached = await self.queue.embed(image, call, planned_points(options, Mode.PROPOSALS))
        size = embedding.geometry.image_size
        check_prompts(prompts, size, self.backend.mask_size)
        if not cached:
            call = replace(call, continuation=True)
        regions = await self._search(image, options, Mode.PROPOSALS).find(embedding, call)
        answers = await asyncio.to_thread(choose_regions, regions, prompts)
        pooled = await self.queue.post_process(
            functools.partial(_pool_answers, embedding, answers, features), embedding
        )
        return Prompted(answers, pooled, size, cached)


def _pool_answers(
    embedding: Embedding, answers: Sequence[Sequence[PromptedRegion]], level: int | None
) -> list[NDArray[np.float32]] | None:
    if level is None:
        return None
    return [pool_features(embedding, [one.region.runs for one in answer], level) for answer in answers]


def _pool_with_image(embedding: Embedding, masks: Sequence[RunLengthMask], level: int) -> NDArray[np.float32]:
    height, width = size = embedding.geometry.image_size
    whole = RunLengthMask.from_edges(size, np.array([0, height * width]))
    return pool_features(embedding, [whole, *masks], level)
