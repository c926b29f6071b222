"""Everything mode over the queue: the crops of an image in turn, each in pieces that others run between."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass, replace

from regionsearch.errors import too_large
from services.segmenter.backends.base import Embedding, Prompts
from services.segmenter.call_context import CallContext, LazyImage
from services.segmenter.everything import Candidate, Region, deduplicate, draw_candidates, unanswered
from services.segmenter.grid import grid_points, plan_crops
from services.segmenter.model_queue import ModelQueue
from services.segmenter.options import EverythingOptions, Mode
from services.segmenter.tasks import DrawTask, EncodeTask, GridTask, ProposeTask, joined

GRID_PIECE = 1024  # grid points of one call in the queue at a time


@dataclass(frozen=True)
class EverythingSearch:
    """Finds all regions of one image.

    Attributes:
        queue: Runs the tasks.
        image: The image.
        options: Checked options.
        mode: Where to look.
        max_candidate_bytes: Memory for the masks of a crop before deduplication.
    """

    queue: ModelQueue
    image: LazyImage
    options: EverythingOptions
    mode: Mode
    max_candidate_bytes: int

    async def find(self, whole: Embedding, call: CallContext) -> list[Region]:
        """Finds the regions, in the reference's order within each crop; duplicates between crops remain.

        Args:
            whole: The embedding of the whole image.
            call: Priority and deadline.
        """
        size = whole.geometry.image_size
        first, *others = plan_crops(size, self.options)
        proposer = self.queue.backend.proposer
        nbytes = self.image.nbytes if proposer is not None and proposer.sees_pixels else 0
        regions = await self._search(
            ProposeTask(whole, first, size, self.options, self.image.decode, nbytes), call
        )
        call = replace(call, continuation=True)
        if others:
            async with self.queue.pixels.hold(self.image.nbytes):
                pixels = await asyncio.to_thread(self.image.decode)
                for crop in others:
                    cut = functools.partial(crop.cut, pixels)
                    embedding = await self.queue.encode(EncodeTask(cut, 0), call)
                    regions += await self._search(
                        ProposeTask(embedding, crop, size, self.options, cut, 0), call
                    )
        return regions

    async def _search(self, asking: ProposeTask, call: CallContext) -> list[Region]:
        """Finds the regions of a crop, without duplicates; grid mode does not use the proposer."""
        if self.mode is Mode.GRID:
            prompts: Prompts = (grid_points(asking.crop, self.options),)
        else:
            [proposed] = await self.queue.submit(asking, call)
            if isinstance(proposed, list):
                return await self._draw(asking, joined([proposed]), call)
            assert isinstance(proposed, tuple)
            prompts = proposed
        candidates = await self._ask(asking, prompts, call)
        found = await asyncio.to_thread(deduplicate, candidates, self.options)
        return await self._draw(asking, found, replace(call, continuation=True))

    async def _ask(self, asking: ProposeTask, prompts: Prompts, call: CallContext) -> list[Candidate]:
        """Asks the model about points and boxes of a crop."""
        embedding, crop, size = asking.embedding, asking.crop, asking.image_size
        candidates: list[Candidate] = []
        asked = 0
        pieces = [
            part[start : start + GRID_PIECE] for part in prompts for start in range(0, len(part), GRID_PIECE)
        ]
        for piece in pieces:
            if self.mode is Mode.PROPOSALS:
                left = functools.partial(unanswered, self.queue.backend, embedding, piece, candidates)
                piece = await self.queue.post_process(left)
                if not len(piece):
                    continue
            found = await self.queue.submit(GridTask(embedding, crop, piece, size, self.options), call)
            candidates += joined(found)
            call = replace(call, continuation=True)
            asked += len(piece)
            most = self.max_candidate_bytes
            if sum(candidate.nbytes for candidate in candidates) > most:
                raise too_large(
                    "everything.points_per_side",
                    f"the masks of {asked} points or boxes take more than {most} bytes "
                    "(max_candidate_bytes); raise pred_iou_thresh or stability_score_thresh, or lower "
                    "points_per_side",
                )
        return candidates

    async def _draw(self, asking: ProposeTask, found: list[Candidate], call: CallContext) -> list[Region]:
        embedding, crop, size = asking.embedding, asking.crop, asking.image_size
        if not found:
            return []
        draw = functools.partial(draw_candidates, self.queue.backend, embedding, crop, found, size)
        with contextlib.suppress(Exception):
            return await self.queue.post_process(draw)
        # Drawing outside the queue avoids waiting behind the grids of later calls. If it fails, as when the
        # device has no memory left meanwhile, the queue draws again and classifies the error.
        return joined(await self.queue.submit(DrawTask(embedding, crop, found, size), call))
