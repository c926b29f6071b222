"""What can be asked of the embedder. A job is prepared once, off the device, and then worked on in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.embedder.backends.base import Backend
from services.embedder.crops import CropPolicy, crop_regions
from services.embedder.resample import resize_image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Regions:
    """Regions of one image.

    Attributes:
        pixels: (H, W, 3) uint8.
        boxes: (N, 4) x_min, y_min, x_max, y_max in pixels, half-open.
        masks: Each cut to its :func:`services.embedder.crops.pixel_box`, bool; None where the box is the
            object. They are looked at one by one, just before they are needed, and may be made only then.
    """

    pixels: Pixels
    boxes: NDArray[np.float32]
    masks: Sequence[NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class RegionsTask:
    """Regions to be embedded. Items are region by region for each part of the policy.

    Attributes:
        read: Decodes image and regions; called once, in a thread.
        count: Number of regions.
        policy: How they are shown.
    """

    read: Callable[[], Regions]
    count: int
    policy: CropPolicy

    @property
    def items(self) -> int:
        """Crops to be embedded."""
        return self.count * len(self.policy.parts)

    def prepare(self, backend: Backend) -> PreparedRegions:
        """Everything that needs no device."""
        regions = self.read()
        return PreparedRegions(
            _planes(regions.pixels), torch.from_numpy(regions.boxes), regions.masks, self.policy
        )


@dataclass
class PreparedRegions:
    """An image whose regions are cut out on the device."""

    image: Tensor
    boxes: Tensor
    masks: Sequence[NDArray[np.bool_]] | None
    policy: CropPolicy
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict)  # one upload for all parts

    def crops(self, start: int, stop: int, backend: Backend) -> Tensor:
        """Normalised crops (stop - start, 3, size, size) on the device."""
        image = self._on_device.get(backend.device)
        if image is None:
            image = self._on_device[backend.device] = self.image.to(backend.device, non_blocking=True)
        split_by_memory = []
        for number, policy in enumerate(self.policy.parts):
            first = number * len(self.boxes)
            chosen = range(max(start - first, 0), min(stop - first, len(self.boxes)))
            if not chosen:
                continue
            split_by_memory.append(
                crop_regions(
                    image,
                    self.boxes[chosen.start : chosen.stop],
                    None if self.masks is None else _OnDevice(self.masks, chosen, backend.device),
                    policy,
                    backend.size,
                    mean=backend.mean,
                    std=backend.std,
                )
            )
        return split_by_memory[0] if len(split_by_memory) == 1 else torch.cat(split_by_memory)


@dataclass(frozen=True)
class _OnDevice(Sequence[Tensor]):
    """Some of the masks, uploaded one by one."""

    masks: Sequence[NDArray[np.bool_]]
    chosen: range
    device: torch.device

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return torch.from_numpy(self.masks[self.chosen[index]]).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class ImageTask:
    """A whole image to be embedded; one item. Resized off the device, so that large images do not travel.

    Attributes:
        read: Decodes the image, (H, W, 3) uint8; called once, in a thread.
    """

    read: Callable[[], Pixels]
    items: int = 1

    def prepare(self, backend: Backend) -> PreparedImage:
        """Everything that needs no device."""
        fitted = resize_image(_planes(self.read()), backend.size, backend.resize_mode)
        mean = torch.tensor(backend.mean).view(3, 1, 1) * 255
        std = torch.tensor(backend.std).view(3, 1, 1) * 255
        return PreparedImage((fitted - mean) / std)


@dataclass(frozen=True)
class PreparedImage:
    """An image of the model's size, normalised."""

    image: Tensor

    def crops(self, start: int, stop: int, backend: Backend) -> Tensor:
        """It, on the device, (1, 3, size, size)."""
        return self.image.unsqueeze(0).to(backend.device, non_blocking=True)


@dataclass(frozen=True)
class TextsTask:
    """Sentences to be embedded, one item each.

    Attributes:
        tokens: (N, context), see :meth:`services.embedder.backends.base.Backend.tokenize`.
    """

    tokens: Tensor

    @property
    def items(self) -> int:
        """Sentences."""
        return len(self.tokens)

    def prepare(self, backend: Backend) -> Any:
        """Nothing is left to do."""
        return self


def _planes(pixels: Pixels) -> Tensor:
    """(3, H, W) of (H, W, 3); always a copy, for the pixels of a message must not be written to."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
