"""What the batcher's stages do with a piece of work: prepare → run on the device → finish.

A piece of work has items, by which it is admitted and may be divided: grid points or prompts. A picture to
encode cannot be divided; it counts as many items as it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.images import Pixels
from services.runtime.batcher import Failure, Part
from services.segmenter.backends.base import Backend, Embedding, Geometry, PromptBatch, Size
from services.segmenter.backends.refiner import CloseUp, Refiner
from services.segmenter.everything import (
    Candidate,
    Region,
    decode_points,
    draw_candidates,
    filter_survivors,
)
from services.segmenter.grid import Crop
from services.segmenter.options import EverythingOptions
from services.segmenter.prompts import PromptedRegion, decode_prompts, draw_answers
from services.segmenter.zoom import draw_close_up

ENCODE_ITEMS = 16  # prompts that cost the device about as much as one picture


@dataclass(frozen=True)
class Encode:
    """Encodes a picture. Its first part gives the `Embedding`, the others None.

    Attributes:
        decode: Returns its pixels, uint8 RGB (height, width, 3).
        nbytes: Memory that they take, where they are not in memory yet.
    """

    decode: Callable[[], Pixels]
    nbytes: int

    def __len__(self) -> int:
        return ENCODE_ITEMS


@dataclass(frozen=True)
class Search:
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
class Draw:
    """Draws candidates of everything mode. Each part gives a list of `Region`."""

    nbytes = 0
    embedding: Embedding
    crop: Crop
    candidates: Sequence[Candidate]
    image_size: Size

    def __len__(self) -> int:
        return len(self.candidates)


@dataclass(frozen=True)
class Answer:
    """Answers prompts of one shape. Each part gives one list of `PromptedRegion` a prompt."""

    nbytes = 0
    embedding: Embedding
    crop: Crop
    prompts: PromptBatch
    image_size: Size
    multimask: bool

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Refine:
    """Looks closely at a part of a picture, with the model's refiner. Gives a list of one `Region`.

    Attributes:
        view: Returns what the refiner is shown; may take long.
        crop: The part.
        image_size: Of the whole picture, which the mask is drawn in.
        nbytes: Memory that the picture's pixels take.
    """

    view: Callable[[], CloseUp]
    crop: Crop
    image_size: Size
    nbytes: int

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class _Look:
    """A close-up as the refiner takes it."""

    work: Refine
    maps: Tensor


Work = Encode | Search | Draw | Answer | Refine
Result = Embedding | list[Candidate] | list[Region] | list[list[PromptedRegion]] | None
_Prepared = tuple[Tensor, Geometry] | Search | Draw | Answer | _Look
_Finish = Callable[[], Result]


class Stages:
    """The three stages over one model."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def prepare(self, work: Work) -> _Prepared:
        """Decodes and resizes pictures; any thread."""
        match work:
            case Encode():
                return self._backend.prepare(work.decode())
            case Refine():
                return _Look(work, self._refiner.prepare(work.view()))
            case _:
                return work

    def run(self, parts: Sequence[Part[_Prepared]]) -> list[_Finish]:
        """Runs the model, pictures first and together; on the device's thread.

        Returns:
            For each part, what is left to do for it.
        """
        pictures = {
            place: part.prepared
            for place, part in enumerate(parts)
            if isinstance(part.prepared, tuple) and part.start == 0
        }
        embeddings = dict(zip(pictures, self._encode(list(pictures.values())), strict=True))
        looks = {place: part.prepared for place, part in enumerate(parts) if isinstance(part.prepared, _Look)}
        refined = dict(zip(looks, self._refine(list(looks.values())), strict=True))
        return [
            refined.get(place) or self._run(part, embeddings.get(place)) for place, part in enumerate(parts)
        ]

    def _run(self, part: Part[_Prepared], embedding: Embedding | None) -> _Finish:
        backend, work = self._backend, part.prepared
        match work:
            case Search():
                points = work.points[part.start : part.stop]
                survivors = decode_points(backend, work.embedding, points, work.options)
                return lambda: filter_survivors(
                    backend, work.embedding, work.crop, survivors, work.image_size, work.options
                )
            case Draw():
                candidates = work.candidates[part.start : part.stop]
                return lambda: draw_candidates(
                    backend, work.embedding, work.crop, candidates, work.image_size
                )
            case Answer():
                prompts = work.prompts.part(part.start, part.stop)
                masks = decode_prompts(backend, work.embedding, prompts, work.multimask)
                return lambda: draw_answers(backend, work.embedding, masks, work.crop, work.image_size)
            case _:
                return lambda: embedding

    def _encode(self, pictures: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        size = self._backend.encode_batch
        return [
            embedding
            for start in range(0, len(pictures), size)
            for embedding in self._backend.encode(pictures[start : start + size])
        ]

    def _refine(self, looks: Sequence[_Look]) -> list[_Finish]:
        if not looks:
            return []
        refiner = self._refiner
        logits, ious = refiner.refine([look.maps for look in looks])
        return [
            partial(draw_close_up, refiner, mask, iou, look.work.crop, look.work.image_size)
            for look, mask, iou in zip(looks, logits, ious.tolist(), strict=True)
        ]

    @property
    def _refiner(self) -> Refiner:
        assert self._backend.refiner is not None
        return self._backend.refiner

    def finish(self, left: Sequence[_Finish]) -> list[Result]:
        """Brings masks to full resolution; on a thread of its own."""
        return [finish() for finish in left]


# How allocators other than torch's own say it: the host's, CUDA's for pinned memory, those of its libraries.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def classify(error: Exception) -> Failure:
    """What an exception of a stage means for the device."""
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(part in message for part in _NO_MEMORY):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what lies in pieces of the wrong size may fit the halves
        return Failure.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "CUDA error" in message:
        return Failure.FATAL  # every later call on this context fails too
    return Failure.POISON


def joined(results: Sequence[Any]) -> list[Any]:
    """The lists that the parts of a piece of work gave, as one."""
    return [item for part in results for item in part]
