"""What the scripts of `seed_…` share: the bundled weights in the published classes, one crop a call."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator

from benchmarks import bench_embedder, segmenter_rig

Vector = NDArray[np.float32]


class Models:
    """SAM's published generator with the options that suit the bundled weights, and the OpenCLIP model."""

    def __init__(self) -> None:
        segmenter, options = segmenter_rig.pocket()
        self._generator = SamAutomaticMaskGenerator(segmenter.model, **asdict(options))
        self._clip: Any = bench_embedder.load("pocket")
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (self._clip.mean, self._clip.std))
        self.dimension: int = self._clip.dimension

    def masks(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """As the generator gives them: segmentation, bbox (x, y, width, height), area, predicted_iou …"""
        found: list[dict[str, Any]] = self._generator.generate(pixels)
        return found

    @torch.inference_mode()
    def image(self, crop: Image.Image) -> Vector:
        """The unit vector of a crop."""
        size = (self._clip.size, self._clip.size)
        pixels = torch.from_numpy(np.array(crop.resize(size, Image.Resampling.BICUBIC)))
        batch = ((pixels.permute(2, 0, 1).float() / 255 - self._mean) / self._std).unsqueeze(0)
        vector: Vector = self._clip._model.encode_image(batch, normalize=True)[0].numpy()
        return vector

    @torch.inference_mode()
    def text(self, words: str) -> Vector:
        """The unit vector of a text."""
        tokens, _ = self._clip.tokenize([words])
        vector: Vector = self._clip._model.encode_text(tokens, normalize=True)[0].numpy()
        return vector


def opened(data: bytes) -> Image.Image:
    """An image file as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def corners(mask: dict[str, Any]) -> tuple[int, int, int, int]:
    """The box of a mask as Pillow crops it."""
    x, y, width, height = (int(value) for value in mask["bbox"])
    return x, y, x + width + 1, y + height + 1


def on_white(image: Image.Image, mask: dict[str, Any]) -> Image.Image:
    """The crop of a mask with everything else white."""
    pixels = np.where(mask["segmentation"][..., None], np.array(image), 255).astype(np.uint8)
    return Image.fromarray(pixels).crop(corners(mask))
