"""The interface of the engine to a model of any family."""

from __future__ import annotations

from collections.abc import Sequence
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
        preprocess: ``mean``, ``std`` (values 0..1) and ``resize_mode`` of whole images.
        weights: None for random weights.
        digest: SHA-256 of the weights, hexadecimal, by which collections know the model; that of an earlier
            file where its manifest says that only the form is new (``same_as``). Empty for random weights.
    """

    family: str
    variant: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None
    digest: str = field(default="")


class Backend(Protocol):
    """A vision-language model on one device.

    Attributes:
        files: What was loaded.
        device: Where it is.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        dimension: Length of the vectors.
        size: Side of the input images in pixels.
        mean: Of pixel values 0..1, per channel.
        std: Of pixel values 0..1, per channel.
        compiled: Whether every new batch size costs a compilation.
        resize_mode: How whole images are fitted, see :func:`services.embedder.resample.resize_image`.
    """

    files: ModelFiles
    device: torch.device
    precision: str
    dimension: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    compiled: bool
    resize_mode: str

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids (N, context), and for each text whether its end was cut off."""
        ...

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of normalised crops (N, 3, size, size) on the device."""
        ...

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of token ids (N, context) on the device."""
        ...
