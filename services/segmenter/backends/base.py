"""The interface between a family of segmenters and the engine.

A family splits its work the way the engine schedules it: `prepare` needs no device and runs in any thread,
`encode` and `decode` run on the one thread that owns the device. Nothing here knows about gRPC, options or
queues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.images import Pixels
from regionsearch.masks import Size as Size
from services.segmenter.options import EverythingOptions
from services.torch_runtime.devices import to_device

if TYPE_CHECKING:
    from services.segmenter.backends.refiner import Refiner


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights answer, at which precision, on which device.

    Attributes:
        family: ``sam``, ``sam2``, ``sam3``.
        variant: ``pocket``, ``vit_b``.
        digest: SHA-256 of the weights file, hexadecimal.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        device: As torch names it.
    """

    family: str
    variant: str
    digest: str
    precision: str
    device: str


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        family: Which module of this package loads it.
        variant: Which of the family's architectures it is.
        weights: The file.
        digest: SHA-256 of the file, hexadecimal.
        architecture: Arguments of the architecture, for variants that take any.
        everything: Defaults of everything mode, by option, where they differ from the reference's.
        mode: Everything mode's default: ``grid`` or ``proposals``.
        zoom: Prompts zoom by default.
        match_rates: By precision, the share of fp32's regions that is found (at an IoU of 0.9 or more).
        folder: Where configuration and tokenizer are, for models in the layout of the Hugging Face hub.
    """

    family: str
    variant: str
    weights: Path
    digest: str
    architecture: Mapping[str, Any]
    everything: Mapping[str, Any]
    mode: str = "grid"
    zoom: bool = False
    match_rates: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None


_REACH = 3  # logits: how far beyond its own place a pixel depends on them, through two bilinear steps


@dataclass(frozen=True)
class ResizeStep:
    """A bilinear step from logits to pixels: resize to `size`, keep the `crop` that begins at `corner`."""

    size: Size
    crop: Size
    corner: Size = (0, 0)


@dataclass(frozen=True)
class Geometry:
    """How an image, the encoder's input and the decoder's masks map to each other; sizes are (height, width).

    Attributes:
        image_size: Size of the image that was prepared.
        input_size: Size of the image inside the encoder's input.
        padded_size: Size of the encoder's input.
        steps: Resizing steps from the decoder's masks to `image_size`.
        corner: Row and column of the encoder's input where the image begins.
    """

    image_size: Size
    input_size: Size
    padded_size: Size
    steps: tuple[ResizeStep, ...]
    corner: Size = (0, 0)

    def to_input(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Maps pixels (…, 2) as x, y of the image to pixels of the encoder's input."""
        (height, width), (input_height, input_width) = self.image_size, self.input_size
        scaled: NDArray[np.float64] = points * np.array([input_width / width, input_height / height])
        return scaled + self.corner[::-1]

    def to_logits(self, boxes: NDArray[np.float64], mask_size: Size) -> NDArray[np.int64]:
        """The logits that the pixels of boxes (n, 4) depend on, as top, bottom, left, right, half-open."""
        edges = self.to_input(boxes.reshape(-1, 2, 2)) * (np.array(mask_size) / self.padded_size)[::-1]
        low, high = np.floor(edges[:, 0]) - _REACH, np.ceil(edges[:, 1]) + _REACH
        windows = np.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], axis=1)
        return windows.clip(0, np.repeat(mask_size, 2)).astype(np.int64)


@dataclass(frozen=True)
class Embedding:
    """The encoder's output for one image.

    Attributes:
        features: Feature maps (C, h, w) on the device. Regions are pooled from the first of them, as many as
            `Backend.feature_channels` has, the coarsest first; the mask decoder attends to that one.
        geometry: The image's geometry.
        ready: When the encoder is done, for other streams of a GPU.
    """

    features: tuple[Tensor, ...]
    geometry: Geometry
    ready: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        """Device memory that the embedding holds."""
        return sum(part.untyped_storage().nbytes() for part in self.features)


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one shape: equal numbers of points, all or none with a box, all or none with a mask.

    Coordinates are those of the encoder's input.

    Attributes:
        points: (B, P, 2) as x, y; float32, or float64 where the reference computes the grid in it.
        labels: int32 (B, P); 1 foreground, 0 background.
        boxes: float32 (B, 4).
        mask_logits: float32 (B, 1, h, w), of `Backend.mask_size`.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        return max(len(part) for part in self._parts() if part is not None)

    def part(self, start: int, stop: int) -> PromptBatch:
        """The prompts from `start` to `stop`, half-open."""
        return PromptBatch(*(None if part is None else part[start:stop] for part in self._parts()))

    def split(self, size: int) -> Iterator[PromptBatch]:
        """Batches of at most `size` prompts."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def _parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.points, self.labels, self.boxes, self.mask_logits


@dataclass(frozen=True)
class DecodedMasks:
    """Masks whose predicted IoU is high enough.

    Attributes:
        logits: Low-resolution masks, float32 (n, h, w), on the device.
        scores: Predicted IoU, float32 (n,).
        points: The prompting points, or centers of boxes, (n, 2) as x, y in pixels of the crop.
        limits: Windows outside of which a mask is cut off, int64 (n, 4) as top, bottom, left, right in pixels
            of the crop, half-open; None for no limits.
    """

    logits: Tensor
    scores: NDArray[np.float32]
    points: NDArray[np.float64]
    limits: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FoundMasks:
    """Masks of the objects that a phrase names, best first.

    Attributes:
        logits: Low-resolution masks, float32 (n, h, w), on the device.
        scores: Probability that the object is there and is meant, float32 (n,).
    """

    logits: Tensor
    scores: NDArray[np.float32]


class PhraseFinder(Protocol):
    """Finds all objects that a phrase names."""

    def is_truncated(self, phrase: str) -> bool:
        """Whether a phrase is longer than the model reads. Any thread."""

    def find(self, embedding: Embedding, phrase: str, min_score: float) -> FoundMasks:
        """Finds the objects that score more than `min_score`; on the device."""


class Decoding(Protocol):
    """Answers to a batch of prompts; masks are computed when they are asked for."""

    ious: Tensor
    """Predicted IoU, float32 (B, 4); mask 0 is for unambiguous prompts, masks 1 to 3 for ambiguous ones."""

    def logits(self, rows: Tensor, columns: Tensor, windows: NDArray[np.int64] | None = None) -> Tensor:
        """Low-resolution logits, float32 (n, h, w); mask i is ``columns[i]`` of prompt ``rows[i]``.

        Both are int64 on the host, where they were chosen, so that nothing waits for the device.

        Args:
            rows: Ascending.
            columns: 0 for the unambiguous mask, 1 to 3 for the others.
            windows: Of each prompt of the batch the logits that the caller looks at, int64 (B, 4) as top,
                bottom, left, right, half-open. All others may have any value.
        """


class EagerDecoding:
    """All masks of a batch, computed at once; see :class:`Decoding`.

    Args:
        ious: Predicted IoU, float32 (B, 4).
        masks: Low-resolution logits, float32 (B, 4, h, w).
    """

    def __init__(self, ious: Tensor, masks: Tensor) -> None:
        self.ious = ious
        self._masks = masks

    def logits(self, rows: Tensor, columns: Tensor, windows: NDArray[np.int64] | None = None) -> Tensor:
        """Low-resolution logits of single masks."""
        return self._masks[to_device(rows, self._masks.device), to_device(columns, self._masks.device)]


Prompts = tuple[NDArray[np.float64], ...]
"""What to ask the model, in this order: boxes (n, 4) as x_min, y_min, x_max, y_max, or points (n, 2) as x, y.

A point that lies in a sure mask of something asked before is not asked.
"""

Proposals = Prompts | DecodedMasks
"""Prompts, or masks without duplicates; in pixels of the embedded image, at most `MAX_PROPOSALS`."""


class Proposer(Protocol):
    """Says where the objects of an image are."""

    sees_pixels: bool
    """Whether `prepare` makes anything of the pixels; if not, nobody needs to decode them for it."""

    def prepare(self, image: Pixels) -> Any:
        """What `propose` needs of an image, uint8 RGB (H, W, 3). Any thread."""

    def propose(self, embedding: Embedding, prepared: Any, options: EverythingOptions) -> Proposals:
        """Proposes objects of an embedded image; on the device."""


class Backend(Protocol):
    """One loaded model."""

    identity: ModelIdentity
    device: torch.device
    mask_threshold: float
    mask_size: Size
    """Size of the decoder's masks, and of mask prompts."""
    feature_channels: tuple[int, ...]
    """Channels of the feature maps that regions can be pooled from, the coarsest map first."""
    encode_batch: int
    """Number of images encoded at once."""
    decode_batch: int
    """Number of prompts decoded at once; larger batches are split."""
    refiner: Refiner | None
    """Refines the masks that prompts found; None if the model does not have one."""
    proposer: Proposer | None
    """Proposes masks, or prompts in place of a grid; None if the model does not have one."""
    phrase_finder: PhraseFinder | None
    """Finds what phrases name; None if the model does not take phrases."""
    choices: EverythingOptions | None
    """For models without a mask decoder, how to propose what prompts select from; None for others."""

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Resizes an image, uint8 RGB (H, W, 3), for the encoder. Thread-safe."""

    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Runs the image encoder over a batch of prepared images."""

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Decoding:
        """Runs the mask decoder over prompts on one image; not called for models with `choices`."""
