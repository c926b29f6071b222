"""Closer looks of a call: with the model's refiner where it has one, else with the model itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from regionsearch.images import Pixels
from services.segmenter.backends.base import Geometry
from services.segmenter.call_context import CallContext, LazyImage
from services.segmenter.grid import Crop
from services.segmenter.pipeline import Pipeline, gather
from services.segmenter.prompts import Prompt, PromptedRegion
from services.segmenter.refine.cascade import RefineTarget, first_masks
from services.segmenter.refine.zoom_in import SURROUNDINGS, agree, enlarged, seen_from
from services.segmenter.tasks import RefineTask, joined

LOOKS = 8  # closer looks of a call at a time; each of the model's own holds an embedding


@dataclass
class MaskRefiner:
    """The closer looks of one call.

    Attributes:
        pipeline: What looks.
        picture: That the prompts are about.
        geometry: Of the whole image.
        multimask: Whether the first look gave three masks.
        call: Who waits.
    """

    pipeline: Pipeline
    picture: LazyImage
    geometry: Geometry
    multimask: bool
    call: CallContext
    _pixels: Pixels | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    async def improve(
        self, prompts: Sequence[Prompt], answers: Sequence[list[PromptedRegion]]
    ) -> list[list[PromptedRegion]]:
        """For each prompt what the first look, whose answers are given, and closer ones say together."""
        look = self._look_again if self.pipeline.backend.refiner is None else self._refine
        turns = asyncio.Semaphore(LOOKS)

        async def closer(prompt: Prompt, answer: list[PromptedRegion]) -> list[PromptedRegion]:
            async with turns:
                return await look(prompt, answer)

        return await gather(list(map(closer, prompts, answers)))

    async def _refine(self, prompt: Prompt, answer: list[PromptedRegion]) -> list[PromptedRegion]:
        """The best mask as the refiner draws it."""
        best, *others = answer
        if prompt.has_mask or not best.region.area:
            return answer
        work = RefineTask(partial(self._subject, prompt, answer), self.picture.nbytes)
        regions = joined(await self.pipeline.submit(work, self.call))
        if not regions or not regions[0].area:
            return answer
        # The refiner was not taught what is not an object: it draws one and is sure of it.
        sure = min(regions[0].predicted_iou, best.region.predicted_iou)
        return [replace(best, region=replace(regions[0], predicted_iou=sure)), *others]

    def _subject(self, prompt: Prompt, answer: list[PromptedRegion]) -> RefineTarget:
        return RefineTarget(self._decode(), self.geometry, prompt, first_masks(answer), answer[0].region.box)

    async def _look_again(self, prompt: Prompt, answer: list[PromptedRegion]) -> list[PromptedRegion]:
        """What the masks of the first look and of the model's looks at parts of the image vote for."""
        if prompt.has_mask:  # it belongs to the whole image
            return answer
        looks = {Crop.whole(self.geometry.image_size): answer}
        for sides in SURROUNDINGS:
            best = max((look[0].region for look in looks.values()), key=lambda region: region.rank)
            crop = enlarged(prompt, best, sides, self.geometry)
            if crop is not None and crop not in looks:
                looks[crop] = await self._look(prompt, crop)
        if len(looks) == 1:
            return answer
        return await asyncio.to_thread(agree, list(looks.values()))

    async def _look(self, prompt: Prompt, crop: Crop) -> list[PromptedRegion]:
        part = LazyImage(f"{self.picture.key} {crop}", lambda: crop.cut(self._decode()), self.picture.nbytes)
        embedding, _ = await self.pipeline.embed(part, self.call)
        moved = [seen_from(crop, prompt)]
        size = self.geometry.image_size
        [answer] = await self.pipeline.answer(embedding, crop, moved, self.multimask, size, self.call)
        return answer

    def _decode(self) -> Pixels:
        with self._lock:  # the threads that prepare the looks ask for it at once
            if self._pixels is None:
                self._pixels = self.picture.decode()
            return self._pixels
