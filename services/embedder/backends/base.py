"""The interface of the engine to a model of any family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        family: ``open_clip``.
        variant: ``pocket``, ``ViT-B-32``.
        config: The architecture, in the family's own terms.
        preprocess: As open_clip names it: ``mean``, ``std`` (values 0..1), ``interpolation``, and
            ``resize_mode`` and ``fill_color`` of whole images.
        weights: None for random weights.
        digest: SHA-256 of the weights, hexadecimal, by which collections know the model; that of an earlier
            file where its manifest says that only the form is new (``same_as``). Empty for random weights.
        cut_offs: By crop policy, from which cosine of a text and a region the region shows what the text
            says; empty for a model that was not calibrated.
        graph: The image tower for ONNX Runtime, with the same weights; None where there is none.
    """

    family: str
    variant: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None
    digest: str = field(default="")
    cut_offs: Mapping[str, float] = field(default_factory=dict)
    graph: Path | None = None


class Backend(Protocol):
    """A vision-language model on one device.

    Attributes:
        files: What was loaded.
        device: Where it is.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        dimension: Length of the vectors.
        size: Side of the input images in pixels.
        mean: Mean of pixel values 0..1, per channel.
        std: Standard deviation of pixel values 0..1, per channel.
        compiled: Whether every new batch size costs a compilation.
        interpolation: Filter of the resizing, one of :data:`services.embedder.resample.KERNELS`.
        resize_mode: How whole images are fitted, see :func:`services.embedder.resample.resize_image`.
        fill: Value 0..255 of what whole images are padded with.
    """

    files: ModelFiles
    device: torch.device
    precision: str
    dimension: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    compiled: bool
    interpolation: str
    resize_mode: str
    fill: int

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids (N, context), and for each text whether its end was cut off."""

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of normalised crops (N, 3, size, size) on the device."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of token ids (N, context) on the device."""
