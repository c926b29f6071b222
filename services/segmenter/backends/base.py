"""What a family of segmenters offers to the engine.

A family splits its work the way the engine schedules it: `prepare` needs no device and runs in any thread,
`encode` and `decode` run on the one thread that owns the device. Nothing here knows gRPC, options or
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

if TYPE_CHECKING:
    from services.segmenter.backends.proposer import Proposer
    from services.segmenter.backends.refiner import Refiner


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights answer, and how they are computed.

    Attributes:
        family: ``sam``, ``sam2``.
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
        architecture: Arguments of the architecture, for variants that have any.
        everything: Defaults of everything mode, by option, where they differ from the reference's.
        mode: Everything mode's default: ``grid`` or ``proposals``.
        zoom: Prompts zoom by default.
        match_rates: By precision, which share of the regions of fp32 is found (IoU of 0.9 or more).
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


@dataclass(frozen=True)
class ResizeStep:
    """A bilinear step from logits to pixels: resize to `size`, keep the `crop` that begins at `corner`."""

    size: Size
    crop: Size
    corner: Size = (0, 0)


@dataclass(frozen=True)
class Geometry:
    """How an image, the encoder's input and the decoder's masks lie over each other.

    Attributes:
        image_size: Of the image that was prepared.
        input_size: Of the image inside the encoder's input.
        padded_size: Of the encoder's input.
        steps: From the decoder's masks to `image_size`.
        corner: Row and column of the encoder's input where the image begins.
    """

    image_size: Size
    input_size: Size
    padded_size: Size
    steps: tuple[ResizeStep, ...]
    corner: Size = (0, 0)

    def to_input(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels (…, 2) as x, y in the image, to pixels in the encoder's input."""
        (height, width), (input_height, input_width) = self.image_size, self.input_size
        scaled: NDArray[np.float64] = points * np.array([input_width / width, input_height / height])
        return scaled + self.corner[::-1]


@dataclass(frozen=True)
class Embedding:
    """What the encoder says about one image.

    Attributes:
        features: Feature maps (C, h, w) on the device; the first one is the coarsest, which the mask decoder
            attends to and regions are pooled from.
        geometry: Of the image.
    """

    features: tuple[Tensor, ...]
    geometry: Geometry

    @property
    def nbytes(self) -> int:
        """Device memory that the embedding holds."""
        return sum(part.untyped_storage().nbytes() for part in self.features)


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one shape: the same number of points each, all with a box or none, all with a mask or none.

    Coordinates are those of the encoder's input.

    Attributes:
        points: (B, P, 2) as x, y; float32, or float64 where the reference computes the grid in it.
        labels: int32 (B, P); 1 foreground, 0 background.
        boxes: float32 (B, 4).
        mask_logits: float32 (B, 1, h, w) in the size that `Backend.mask_size` names.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        return max(len(part) for part in self._parts() if part is not None)

    def part(self, start: int, stop: int) -> PromptBatch:
        """Prompts start to stop."""
        return PromptBatch(*(None if part is None else part[start:stop] for part in self._parts()))

    def split(self, size: int) -> Iterator[PromptBatch]:
        """Batches of at most `size` prompts."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def _parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.points, self.labels, self.boxes, self.mask_logits


@dataclass(frozen=True)
class DecodedMasks:
    """Masks of sufficient predicted IoU.

    Attributes:
        logits: Low-resolution masks, float32 (n, h, w), on the device.
        scores: Predicted IoU, float32 (n,).
        points: What they answer, (n, 2) as x, y in pixels of the crop; of a box its middle.
        limits: Nothing of a mask counts outside of these windows, int64 (n, 4) as top, bottom, left, right in
            pixels of the crop, half-open; None where there are no such limits.
    """

    logits: Tensor
    scores: NDArray[np.float32]
    points: NDArray[np.float64]
    limits: NDArray[np.int64] | None = None


class Decoding(Protocol):
    """Answers to a batch of prompts; masks are computed when they are asked for."""

    ious: Tensor
    """Predicted IoU, float32 (B, 4); 0: the one mask of clear prompts, 1 to 3: those of ambiguous ones."""

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Low-resolution logits, float32 (n, h, w); mask i is ``columns[i]`` of prompt ``rows[i]``.

        Both are int64 and on the host, where they are chosen, so that no operation waits for the device.
        """


class Backend(Protocol):
    """One loaded model."""

    identity: ModelIdentity
    device: torch.device
    mask_threshold: float
    mask_size: Size
    """Size of the decoder's masks, and of mask prompts."""
    encode_batch: int
    """Images that are encoded at once."""
    decode_batch: int
    """Prompts that are decoded at once; the engine cuts larger batches."""
    refiner: Refiner | None
    """Looks closer at what prompts found, where the model has one."""
    proposer: Proposer | None
    """Says what there is, or where to look instead of at a grid, where the model has one."""
    choices: EverythingOptions | None
    """Of a model that cannot be prompted, how it proposes what prompts then choose from; None for others."""

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Resizes an image, uint8 RGB (H, W, 3), for the encoder. Any thread."""

    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Runs the image encoder over a batch of prepared images."""

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Decoding:
        """Runs the mask decoder over prompts on one image; not called where there are `choices`."""
