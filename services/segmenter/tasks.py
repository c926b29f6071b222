"""The segmenter's tasks, and the batcher's stages over them: prepare → run on the device → finish.

A task has items, by which it is admitted and may be split over batches: grid points or prompts. A task that
cannot be split, such as encoding an image or refining a mask, counts as many items as it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.images import Pixels
from services.runtime.batcher import BatchSlice
from services.segmenter.backends.base import (
    Backend,
    DecodedMasks,
    Embedding,
    Geometry,
    PromptBatch,
    Prompts,
    Size,
)
from services.segmenter.everything import (
    Candidate,
    Region,
    decode_points,
    draw_candidates,
    filter_survivors,
    find_proposer,
)
from services.segmenter.grid import Crop
from services.segmenter.options import EverythingOptions
from services.segmenter.prompts import (
    Prompt,
    PromptedRegion,
    decode_prompts,
    draw_answers,
    draw_found,
    stack_prompts,
)
from services.segmenter.refine.cascade import RefineTarget, draw_refined, refine_in_passes
from services.torch_runtime.streams import Stage

Made = TypeVar("Made")

# The cost of encoding an image, of refining a mask and of finding a phrase, in prompts.
ENCODE_ITEMS = 16
REFINE_ITEMS = 4
PHRASE_ITEMS = 8


@dataclass(frozen=True)
class EncodeTask:
    """Encodes an image. The result of its first slice is the `Embedding`, that of the others None.

    Attributes:
        decode: Returns its pixels, uint8 RGB (height, width, 3).
        nbytes: Size of the pixels; 0 if they are already in memory.
    """

    decode: Callable[[], Pixels]
    nbytes: int

    def __len__(self) -> int:
        return ENCODE_ITEMS


@dataclass(frozen=True)
class ProposeTask:
    """Asks the model's proposer. The result is its prompts, or a list of `Candidate` of its masks.

    Attributes:
        decode: Returns the pixels of the crop, uint8 RGB (height, width, 3).
        nbytes: Size of the pixels; 0 if they are already in memory or not needed.
    """

    embedding: Embedding
    crop: Crop
    image_size: Size
    options: EverythingOptions
    decode: Callable[[], Pixels]
    nbytes: int

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class Proposing:
    """A `ProposeTask` with what its proposer made of the pixels."""

    task: ProposeTask
    prepared: Any


@dataclass(frozen=True)
class GridTask:
    """Decodes points or boxes of everything mode. The result of a slice is a list of `Candidate`."""

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
    """Draws candidates of everything mode. The result of a slice is a list of `Region`."""

    nbytes = 0
    embedding: Embedding
    crop: Crop
    candidates: Sequence[Candidate]
    image_size: Size

    def __len__(self) -> int:
        return len(self.candidates)


@dataclass(frozen=True)
class PromptTask:
    """Answers prompts of one shape. The result of a slice is a list of `PromptedRegion` per prompt."""

    embedding: Embedding
    crop: Crop
    prompts: Sequence[Prompt]
    image_size: Size
    multimask: bool

    @property
    def nbytes(self) -> int:
        """Memory for reading the largest of the prompts' masks; one is read at a time."""
        return max(
            3 * prompt.mask.size[0] * prompt.mask.size[1] if prompt.mask else 0 for prompt in self.prompts
        )

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class StackedPrompts:
    """A `PromptTask` with its prompts as tensors."""

    task: PromptTask
    prompts: PromptBatch


@dataclass(frozen=True)
class RefineTask:
    """Refines a mask, with the model's refiner.

    The result of its first slice is a list of one `Region`, empty if nothing was found; that of the others is
    empty.

    Attributes:
        target: Returns what to refine; may take long.
        nbytes: Size of the image's pixels.
    """

    target: Callable[[], RefineTarget]
    nbytes: int

    def __len__(self) -> int:
        return REFINE_ITEMS


@dataclass(frozen=True)
class PhraseTask:
    """Finds all objects that a phrase names. The result of its first slice is a list of `Region`, best first;
    that of the others is empty.
    """

    nbytes = 0
    embedding: Embedding
    phrase: str
    min_score: float

    def __len__(self) -> int:
        return PHRASE_ITEMS


Task = EncodeTask | ProposeTask | GridTask | DrawTask | PromptTask | RefineTask | PhraseTask
Result = Embedding | Prompts | list[Candidate] | list[Region] | list[list[PromptedRegion]] | None
_Prepared = (
    tuple[Tensor, Geometry] | Proposing | GridTask | DrawTask | StackedPrompts | RefineTarget | PhraseTask
)
_Finish = Callable[[], Result]


@dataclass(frozen=True)
class Unfinished:
    """A batch that the model has run on.

    Attributes:
        parts: For each slice what remains to be done.
        ready: When the device is done with the batch.
    """

    parts: Sequence[_Finish]
    ready: torch.cuda.Event | None


class Stages:
    """The three stages of the batcher over one model.

    On a GPU, encoder, decoder (with proposer and refiner) and post-processing have a stream each.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._encoding, self._decoding, self._finishing = (Stage(backend.device) for _ in range(3))

    def prepare(self, task: Task) -> _Prepared:
        """Decodes and resizes images and masks. Thread-safe."""
        match task:
            case EncodeTask():
                return self._backend.prepare(task.decode())
            case RefineTask():
                return task.target()
            case ProposeTask():
                proposer = find_proposer(self._backend)
                return Proposing(task, proposer.prepare(task.decode()) if proposer.sees_pixels else None)
            case PromptTask():
                geometry, mask_size = task.embedding.geometry, self._backend.mask_size
                return StackedPrompts(task, stack_prompts(task.prompts, geometry, mask_size))
            case _:
                return task

    def run(self, parts: Sequence[BatchSlice[_Prepared]]) -> Unfinished:
        """Runs the model, on the device's thread: images as a batch, then refinements, then the rest."""
        images = {
            place: part.prepared
            for place, part in enumerate(parts)
            if isinstance(part.prepared, tuple) and part.start == 0
        }
        embeddings = dict(zip(images, self._encode(list(images.values())), strict=True))
        targets = {
            place: part.prepared
            for place, part in enumerate(parts)
            if isinstance(part.prepared, RefineTarget) and part.start == 0
        }
        with self._decoding.running():
            refined = dict(zip(targets, self._refine(list(targets.values())), strict=True))
            left = [
                refined.get(place) or self._run(part, embeddings.get(place))
                for place, part in enumerate(parts)
            ]
            return Unfinished(left, self._decoding.mark())

    def _run(self, part: BatchSlice[_Prepared], embedding: Embedding | None) -> _Finish:
        backend, task = self._backend, part.prepared
        match task:
            case Proposing(asking, prepared):
                self._receive(asking.embedding)
                proposed = find_proposer(backend).propose(asking.embedding, prepared, asking.options)
                if not isinstance(proposed, DecodedMasks):
                    return lambda: proposed
                return lambda: filter_survivors(
                    backend, asking.embedding, asking.crop, proposed, asking.image_size, asking.options
                )
            case GridTask():
                self._receive(task.embedding)
                points = task.points[part.start : part.stop]
                survivors = decode_points(backend, task.embedding, points, task.options)
                return lambda: filter_survivors(
                    backend, task.embedding, task.crop, survivors, task.image_size, task.options
                )
            case DrawTask():
                candidates = task.candidates[part.start : part.stop]
                return lambda: draw_candidates(
                    backend, task.embedding, task.crop, candidates, task.image_size
                )
            case StackedPrompts(asked, stacked):
                self._receive(asked.embedding)
                prompts = stacked.part(part.start, part.stop)
                masks = decode_prompts(backend, asked.embedding, prompts, asked.multimask)
                return lambda: draw_answers(backend, asked.embedding, masks, asked.crop, asked.image_size)
            case RefineTarget():
                return list
            case PhraseTask():
                if part.start:
                    return list
                finder = backend.phrase_finder
                assert finder is not None
                self._receive(task.embedding)
                found = finder.find(task.embedding, task.phrase, task.min_score)
                return lambda: draw_found(backend, task.embedding, found)
            case _:
                return lambda: embedding

    def _receive(self, embedding: Embedding) -> None:
        self._decoding.receive(embedding.ready, embedding.features)

    def _encode(self, images: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        size, embeddings = self._backend.encode_batch, []
        with self._encoding.running():
            for start in range(0, len(images), size):
                some = self._backend.encode(images[start : start + size])
                ready = self._encoding.mark()
                embeddings += [replace(embedding, ready=ready) for embedding in some]
        return embeddings

    def _refine(self, targets: Sequence[RefineTarget]) -> list[_Finish]:
        if not targets:
            return []
        refiner = self._backend.refiner
        assert refiner is not None
        return [
            list if refined is None else partial(draw_refined, refiner, refined, target.geometry)
            for target, refined in zip(targets, refine_in_passes(refiner, targets), strict=True)
        ]

    def finish(self, batch: Unfinished) -> list[Result]:
        """Brings masks to full resolution, on a finishing thread."""
        return self.post_process(lambda: [finish() for finish in batch.parts], batch.ready)

    def post_process(self, work: Callable[[], Made], ready: torch.cuda.Event | None = None) -> Made:
        """Does work of the post-processing stage, to its end: nothing reads its inputs afterwards.

        Args:
            work: Called once, on the calling thread.
            ready: When its inputs are made; None for results of earlier work of this stage.
        """
        with self._finishing.running():
            self._finishing.receive(ready)
            try:
                return work()
            finally:
                self._finishing.synchronize()


def joined(results: Sequence[Any]) -> list[Any]:
    """Concatenates the result lists of a task's slices."""
    return [item for part in results for item in part]
