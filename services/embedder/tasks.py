"""The embedder's tasks. A task is prepared once, off the device, and then run in slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.embedder.backends.base import Backend
from services.embedder.crops import crop_regions
from services.embedder.options import CropPolicy
from services.embedder.resample import resize_image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Regions:
    """Regions of one image.

    Attributes:
        pixels: (H, W, 3) uint8.
        boxes: (N, 4) x_min, y_min, x_max, y_max in pixels, half-open.
        masks: Each cut to its :func:`services.embedder.crops.pixel_box`, bool; None where the box is the
            object. They are read one by one, just before they are needed, and may be decoded only then.
    """

    pixels: Pixels
    boxes: NDArray[np.float32]
    masks: Sequence[NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class RegionsTask:
    """Regions to be embedded. The first item is the whole image where it is included; then come the regions,
    one after the other, once for each part of the policy.

    Attributes:
        read: Decodes image and regions; called once, in a thread.
        count: Number of regions.
        policy: How they are shown.
        include_image: Whether the whole image is embedded too.
    """

    read: Callable[[], Regions]
    count: int
    policy: CropPolicy
    include_image: bool = False

    @property
    def items(self) -> int:
        """Crops to be embedded."""
        return self.include_image + self.count * len(self.policy.parts)

    def prepare(self, backend: Backend) -> PreparedRegions:
        """Does all that needs no device."""
        regions = self.read()
        planes = _planes(regions.pixels)
        whole = prepare_image(regions.pixels, backend) if self.include_image else None
        return PreparedRegions(planes, torch.from_numpy(regions.boxes), regions.masks, self.policy, whole)


@dataclass
class PreparedRegions:
    """An image whose regions are cut out on the device, and the whole of it where it is included."""

    image: Tensor
    boxes: Tensor
    masks: Sequence[NDArray[np.bool_]] | None
    policy: CropPolicy
    whole: PreparedImage | None = None
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict)  # one upload for all parts

    def crops(self, start: int, stop: int, backend: Backend) -> Tensor:
        """Normalised crops (stop - start, 3, size, size) on the device."""
        crops = []
        first = 0
        if self.whole is not None:
            first = 1
            if start == 0:
                crops.append(self.whole.crops(0, 1, backend))
        for policy in self.policy.parts:
            chosen = range(max(start - first, 0), min(stop - first, len(self.boxes)))
            first += len(self.boxes)
            if not chosen:
                continue
            crops.append(
                crop_regions(
                    self._uploaded(backend.device),
                    self.boxes[chosen.start : chosen.stop],
                    None if self.masks is None else _OnDevice(self.masks, chosen, backend.device),
                    policy,
                    backend.size,
                    mean=backend.mean,
                    std=backend.std,
                    interpolation=backend.interpolation,
                )
            )
        return crops[0] if len(crops) == 1 else torch.cat(crops)

    def _uploaded(self, device: torch.device) -> Tensor:
        image = self._on_device.get(device)
        if image is None:
            image = self._on_device[device] = self.image.to(device, non_blocking=True)
        return image


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
    """A whole image to be embedded; one item. Resized off the device, so that large images are not uploaded.

    Attributes:
        read: Decodes the image, (H, W, 3) uint8; called once, in a thread.
    """

    read: Callable[[], Pixels]
    items: int = 1

    def prepare(self, backend: Backend) -> PreparedImage:
        """Does all that needs no device."""
        return prepare_image(self.read(), backend)


@dataclass(frozen=True)
class PreparedImage:
    """An image of the model's size, normalised."""

    image: Tensor

    def crops(self, start: int, stop: int, backend: Backend) -> Tensor:
        """The image on the device, (1, 3, size, size)."""
        return self.image.unsqueeze(0).to(backend.device, non_blocking=True)


def prepare_image(pixels: Pixels, backend: Backend) -> PreparedImage:
    """Fits an image (H, W, 3) uint8 to the model's size, off the device, and normalises it."""
    fitted = resize_image(
        pixels, backend.size, backend.resize_mode, backend.fill, interpolation=backend.interpolation
    )
    mean = torch.tensor(backend.mean).view(3, 1, 1) * 255
    std = torch.tensor(backend.std).view(3, 1, 1) * 255
    return PreparedImage((fitted - mean) / std)


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
        """Returns the task itself."""
        return self


def _planes(pixels: Pixels) -> Tensor:
    """(3, H, W) of (H, W, 3); always a copy, because the pixels of a message must not be written to."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
