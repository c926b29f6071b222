"""Refinement of a call's answers: by the model's refiner where it has one, else by zooming in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from regionsearch.images import Pixels
from regionsearch.rpc.calls import fan_out
from services.segmenter.backends.base import Geometry
from services.segmenter.call_context import CallContext, LazyImage
from services.segmenter.grid import Crop
from services.segmenter.model_queue import ModelQueue
from services.segmenter.prompts import Prompt, PromptedRegion
from services.segmenter.refine.cascade import (
    SURROUNDINGS,
    RefineTarget,
    agree,
    enlarged,
    first_masks,
    seen_from,
)
from services.segmenter.tasks import RefineTask, joined

CONCURRENCY = 8  # answers of one call refined at a time; when zooming in, each holds an embedding


@dataclass
class MaskRefiner:
    """Refines the answers of one call.

    Attributes:
        queue: Runs the passes.
        image: The image of the call.
        geometry: The geometry of the whole image.
        multimask: Whether the first pass returned three masks.
        call: Priority and deadline.
    """

    queue: ModelQueue
    image: LazyImage
    geometry: Geometry
    multimask: bool
    call: CallContext
    _pixels: Pixels | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    async def improve(
        self, prompts: Sequence[Prompt], answers: Sequence[list[PromptedRegion]]
    ) -> list[list[PromptedRegion]]:
        """Refines the answer to each prompt.

        Args:
            prompts: The prompts.
            answers: The first pass's masks for each prompt, best first.
        """
        improve = self._zoom_in if self.queue.backend.refiner is None else self._refine

        async def one(asked: tuple[Prompt, list[PromptedRegion]]) -> list[PromptedRegion]:
            return await improve(*asked)

        return await fan_out(one, list(zip(prompts, answers, strict=True)), CONCURRENCY)

    async def _refine(self, prompt: Prompt, answer: list[PromptedRegion]) -> list[PromptedRegion]:
        """Replaces the best mask of the answer by the refiner's."""
        best, *others = answer
        if prompt.has_mask or not best.region.area:
            return answer
        task = RefineTask(partial(self._target, prompt, answer), self.image.nbytes)
        regions = joined(await self.queue.submit(task, self.call))
        if not regions or not regions[0].area:
            return answer
        # The refiner was only trained on objects: its confidence is high whatever it draws.
        confidence = min(regions[0].predicted_iou, best.region.predicted_iou)
        return [replace(best, region=replace(regions[0], predicted_iou=confidence)), *others]

    def _target(self, prompt: Prompt, answer: list[PromptedRegion]) -> RefineTarget:
        return RefineTarget(self._decode(), self.geometry, prompt, first_masks(answer), answer[0].region.box)

    async def _zoom_in(self, prompt: Prompt, answer: list[PromptedRegion]) -> list[PromptedRegion]:
        """Votes among the masks of the first pass and of passes over enlarged parts of the image."""
        if prompt.has_mask:  # the mask belongs to the whole image
            return answer
        passes = {Crop.whole(self.geometry.image_size): answer}
        for sides in SURROUNDINGS:
            best = max((found[0].region for found in passes.values()), key=lambda region: region.rank)
            crop = enlarged(prompt, best, sides, self.geometry)
            if crop is not None and crop not in passes:
                passes[crop] = await self._answer_in(crop, prompt)
        if len(passes) == 1:
            return answer
        return await asyncio.to_thread(agree, list(passes.values()))

    async def _answer_in(self, crop: Crop, prompt: Prompt) -> list[PromptedRegion]:
        part = LazyImage(f"{self.image.key} {crop}", lambda: crop.cut(self._decode()), self.image.nbytes)
        embedding, _ = await self.queue.embed(part, self.call)
        moved = [seen_from(crop, prompt)]
        size = self.geometry.image_size
        [answer] = await self.queue.answer(embedding, crop, moved, self.multimask, size, self.call)
        return answer

    def _decode(self) -> Pixels:
        with self._lock:  # several threads prepare passes at once
            if self._pixels is None:
                self._pixels = self.image.decode()
            return self._pixels
