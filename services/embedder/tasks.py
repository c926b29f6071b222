"""The embedder's tasks. A task is prepared once, off the device, and then run in slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.embedder.backends.base import Backend
from services.embedder.crop_plan import Window, needs_masks, plan_crops
from services.embedder.crops import cut_crops
from services.embedder.options import CropPolicy
from services.embedder.resample import resize_image
from services.embedder.upload import Upload

Pixels = NDArray[np.uint8]
OnDevice = Callable[[], Tensor]
"""Returns crops, or what they are made of, on the device, once they are there."""


@dataclass(frozen=True)
class Regions:
    """Regions of one image.

    Attributes:
        pixels: (H, W, 3) uint8.
        boxes: (N, 4) x_min, y_min, x_max, y_max in pixels, half-open.
        masks: Each cut to its :func:`services.embedder.crop_plan.pixel_box`, bool; None where the box is the
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
        return PreparedRegions(planes, regions.boxes, regions.masks, self.policy, whole)


@dataclass
class PreparedRegions:
    """An image whose regions are cut out on the device, and the whole of it where it is included."""

    image: Tensor
    boxes: NDArray[np.float32]
    masks: Sequence[NDArray[np.bool_]] | None
    policy: CropPolicy
    whole: PreparedImage | None = None
    _uploaded: dict[torch.device, Tensor] = field(default_factory=dict)  # the image, once for all slices

    def gather(self, start: int, stop: int, backend: Backend, upload: Upload) -> list[OnDevice]:
        """Adds what some items need to an upload; see :func:`cut_batch`."""
        cuts: list[OnDevice] = []
        first = 0
        if self.whole is not None:
            first = 1
            if start == 0:
                cuts += self.whole.gather(0, 1, backend, upload)
        image: OnDevice | None = None
        for policy in self.policy.parts:
            chosen = range(max(start - first, 0), min(stop - first, len(self.boxes)))
            first += len(self.boxes)
            if chosen:
                image = image or self._image(backend.device, upload)
                cuts.append(self._gather(image, chosen, policy, backend, upload))
        return cuts

    def _image(self, device: torch.device, upload: Upload) -> OnDevice:
        known = self._uploaded.get(device)
        return upload.add(self.image) if known is None else lambda: known

    def _gather(
        self, image: OnDevice, chosen: range, policy: CropPolicy, backend: Backend, upload: Upload
    ) -> OnDevice:
        size = self.image.shape[1], self.image.shape[2]
        plan = plan_crops(self.boxes[chosen.start : chosen.stop].tolist(), policy, size, backend.size)
        measures, places = upload.add(plan.measures), upload.add(plan.places)
        objects: list[OnDevice] | None = None
        if self.masks is not None and needs_masks(policy):
            objects = [
                self._mask(self.masks, place, box, backend.device, upload)
                for place, box in zip(chosen, plan.boxes, strict=True)
            ]

        def cut_regions() -> Tensor:
            seen = self._uploaded[backend.device] = image()
            options = backend.mean, backend.std, backend.interpolation
            return cut_crops(seen, plan, measures(), places(), objects, *options)

        return cut_regions

    @staticmethod
    def _mask(
        masks: Sequence[NDArray[np.bool_]], place: int, box: Window, device: torch.device, upload: Upload
    ) -> OnDevice:
        """A mask on the device; one that does not fit into the upload is decoded just before it is needed."""
        if upload.has_room(box.height * box.width):
            return upload.add(torch.from_numpy(masks[place]))
        return lambda: torch.from_numpy(masks[place]).to(device, non_blocking=True)


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

    def gather(self, start: int, stop: int, backend: Backend, upload: Upload) -> list[OnDevice]:
        """Adds the image to an upload; see :func:`cut_batch`."""
        return [upload.add(self.image.unsqueeze(0))]


def cut_batch(slices: Iterable[tuple[PreparedRegions | PreparedImage, int, int]], backend: Backend) -> Tensor:
    """The crops of a batch, in one copy to the device, for which nothing waits.

    Args:
        slices: Prepared tasks, each with the first of its items, and the end of them.
        backend: The model that will see them.

    Returns:
        Normalised crops (items, 3, size, size) on the device.
    """
    upload = Upload(backend.device)
    cuts = [one for task, start, stop in slices for one in task.gather(start, stop, backend, upload)]
    upload.send()
    crops = [one() for one in cuts]
    return crops[0] if len(crops) == 1 else torch.cat(crops)


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
