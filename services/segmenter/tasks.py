"""What the batcher's stages do with a piece of work: prepare → run on the device → finish.

A piece of work has items, by which it is admitted and may be divided: grid points or prompts. What
cannot be divided, an image to encode or the closer looks at an object, counts as many items as it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.images import Pixels
from services.runtime.batcher import BatchSlice
from services.segmenter.backends.base import Backend, Embedding, Geometry, PromptBatch, Size
from services.segmenter.everything import (
    Candidate,
    Region,
    decode_points,
    draw_candidates,
    filter_survivors,
)
from services.segmenter.grid import Crop
from services.segmenter.options import EverythingOptions
from services.segmenter.prompts import Prompt, PromptedRegion, decode_prompts, draw_answers, stack_prompts
from services.segmenter.refine.cascade import RefineTarget, draw_refined, refine_in_passes

# Prompts that cost the device about as much as one image, and as the closer looks at one object.
ENCODE_ITEMS = 16
REFINE_ITEMS = 4


@dataclass(frozen=True)
class EncodeTask:
    """Encodes an image. Its first part gives the `Embedding`, the others None.

    Attributes:
        decode: Returns its pixels, uint8 RGB (height, width, 3).
        nbytes: Memory that they take, where they are not in memory yet.
    """

    decode: Callable[[], Pixels]
    nbytes: int

    def __len__(self) -> int:
        return ENCODE_ITEMS


@dataclass(frozen=True)
class GridTask:
    """Searches points of everything mode's grid. Each part gives a list of `Candidate`."""

    nbytes = 0
    embedding: Embedding
    crop: Crop
    points: NDArray[np.float64]
    image_size: Size
    options: EverythingOptions

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class DrawTask:
    """Draws candidates of everything mode. Each part gives a list of `Region`."""

    nbytes = 0
    embedding: Embedding
    crop: Crop
    candidates: Sequence[Candidate]
    image_size: Size

    def __len__(self) -> int:
        return len(self.candidates)


@dataclass(frozen=True)
class PromptTask:
    """Answers prompts of one shape. Each part gives one list of `PromptedRegion` a prompt."""

    embedding: Embedding
    crop: Crop
    prompts: Sequence[Prompt]
    image_size: Size
    multimask: bool

    @property
    def nbytes(self) -> int:
        """Memory that the largest of the prompts' masks takes while it is read; one is read at a time."""
        return max(
            3 * prompt.mask.size[0] * prompt.mask.size[1] if prompt.mask else 0 for prompt in self.prompts
        )

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class StackedAnswer:
    """An `PromptTask` whose prompts have been read."""

    work: PromptTask
    prompts: PromptBatch


@dataclass(frozen=True)
class RefineTask:
    """Looks closely at an object, with the model's refiner.

    Its first part gives a list of one `Region`, or of none where it found nothing, the others empty ones.

    Attributes:
        subject: Returns what is looked at; may take long.
        nbytes: Memory that the image's pixels take.
    """

    subject: Callable[[], RefineTarget]
    nbytes: int

    def __len__(self) -> int:
        return REFINE_ITEMS


Work = EncodeTask | GridTask | DrawTask | PromptTask | RefineTask
Result = Embedding | list[Candidate] | list[Region] | list[list[PromptedRegion]] | None
_Prepared = tuple[Tensor, Geometry] | GridTask | DrawTask | StackedAnswer | RefineTarget
_Finish = Callable[[], Result]


class Stages:
    """The three stages over one model."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def prepare(self, work: Work) -> _Prepared:
        """Decodes and resizes images and masks; any thread."""
        match work:
            case EncodeTask():
                return self._backend.prepare(work.decode())
            case RefineTask():
                return work.subject()
            case PromptTask():
                geometry, mask_size = work.embedding.geometry, self._backend.mask_size
                return StackedAnswer(work, stack_prompts(work.prompts, geometry, mask_size))
            case _:
                return work

    def run(self, parts: Sequence[BatchSlice[_Prepared]]) -> list[_Finish]:
        """Runs the model, images first and together, then closer looks together; on the device's thread.

        Returns:
            For each part, what is left to do for it.
        """
        pictures = {
            place: part.prepared
            for place, part in enumerate(parts)
            if isinstance(part.prepared, tuple) and part.start == 0
        }
        embeddings = dict(zip(pictures, self._encode(list(pictures.values())), strict=True))
        subjects = {
            place: part.prepared
            for place, part in enumerate(parts)
            if isinstance(part.prepared, RefineTarget) and part.start == 0
        }
        refined = dict(zip(subjects, self._refine(list(subjects.values())), strict=True))
        return [
            refined.get(place) or self._run(part, embeddings.get(place)) for place, part in enumerate(parts)
        ]

    def _run(self, part: BatchSlice[_Prepared], embedding: Embedding | None) -> _Finish:
        backend, work = self._backend, part.prepared
        match work:
            case GridTask():
                points = work.points[part.start : part.stop]
                survivors = decode_points(backend, work.embedding, points, work.options)
                return lambda: filter_survivors(
                    backend, work.embedding, work.crop, survivors, work.image_size, work.options
                )
            case DrawTask():
                candidates = work.candidates[part.start : part.stop]
                return lambda: draw_candidates(
                    backend, work.embedding, work.crop, candidates, work.image_size
                )
            case StackedAnswer(asked, stacked):
                prompts = stacked.part(part.start, part.stop)
                masks = decode_prompts(backend, asked.embedding, prompts, asked.multimask)
                return lambda: draw_answers(backend, asked.embedding, masks, asked.crop, asked.image_size)
            case RefineTarget():
                return list
            case _:
                return lambda: embedding

    def _encode(self, pictures: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        size = self._backend.encode_batch
        return [
            embedding
            for start in range(0, len(pictures), size)
            for embedding in self._backend.encode(pictures[start : start + size])
        ]

    def _refine(self, subjects: Sequence[RefineTarget]) -> list[_Finish]:
        if not subjects:
            return []
        refiner = self._backend.refiner
        assert refiner is not None
        return [
            list if refined is None else partial(draw_refined, refiner, refined, subject.geometry)
            for subject, refined in zip(subjects, refine_in_passes(refiner, subjects), strict=True)
        ]

    def finish(self, left: Sequence[_Finish]) -> list[Result]:
        """Brings masks to full resolution; on a thread of its own."""
        return [finish() for finish in left]


def joined(results: Sequence[Any]) -> list[Any]:
    """The lists that the parts of a piece of work gave, as one."""
    return [item for part in results for item in part]
