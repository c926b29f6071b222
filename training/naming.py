"""How well an embedder names things in scenes it never saw, and in drawings that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from services.embedder.crops import crop_regions
from services.embedder.options import CropPolicy
from training import backgrounds
from training.icon_sets import UNSEEN_SETS, is_unseen, load_icons
from training.prompts import mask_box
from training.scenes import HELD_OUT, Scene
from training.vocabulary import Vocabulary

_CANVAS = 160  # pixels of the square that an icon is shown on
_BATCH = 256


class Encoder(Protocol):
    """What is measured."""

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, side, side) to unit vectors (N, D)."""
        ...

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (N, D)."""
        ...


class NamingQuality:
    """How often the right name, of all names, is the nearest text.

    Args:
        encoder: In evaluation mode.
        vocabulary: All names.
        side: Pixels of a crop.
        device: The encoder's device.
    """

    @torch.no_grad()
    def __init__(self, encoder: Encoder, vocabulary: Vocabulary, side: int, device: torch.device) -> None:
        self._encoder, self._vocabulary = encoder, vocabulary
        self._side, self._device = side, device
        names = vocabulary.names
        parts = [encoder.embed_texts(names[i : i + _BATCH]) for i in range(0, len(names), _BATCH)]
        self._texts = torch.cat(parts)

    @torch.no_grad()
    def of_scenes(self, scenes: list[Scene]) -> dict[str, float]:
        """``top1`` of blurred crops; ``scene_recall``: share of a scene's things among its nearest names."""
        right, whole = [], []
        for scene in scenes:
            image = to_tensor(scene.image, self._device)
            masks = np.stack([scene.labels == thing.label for thing in scene.things])
            boxes = np.stack([mask_box(mask) for mask in masks])
            crops = crop(image, boxes, masks, CropPolicy.BLUR, self._side, self._device)
            truth = self._truth([thing.name for thing in scene.things])
            right.append(self._nearest(crops, 1)[:, 0] == truth)
            top = self._nearest(whole_crop(image, self._side), len(truth))[0]
            whole.append(torch.isin(truth, top).float())
        return {
            "top1": float(torch.cat(right).float().mean()),
            "scene_recall": float(torch.cat(whole).mean()),
        }

    @torch.no_grad()
    def of_unseen_icons(self, limit: int | None = None) -> dict[str, float]:
        """First and among the first five, for unseen images of trained sets, and for sets never seen.

        A kind of which no image is on this machine is left out.

        Args:
            limit: At most so many images of each kind.
        """
        figures: dict[str, float] = {}
        for kind, seen_set in (("unseen_icons", True), ("unseen_sets", False)):
            crops: list[Tensor] = []
            names: list[str] = []
            for name, pixels in islice(_unseen_icons(seen_set), limit):
                image, mask = _show(pixels, len(names))
                mask_planes, boxes = mask[None], mask_box(mask)[None]
                tensor = to_tensor(image, self._device)
                crops.append(crop(tensor, boxes, mask_planes, CropPolicy.BLUR, self._side, self._device))
                names.append(name)
            if not names:
                continue
            pixels_all = torch.cat(crops)
            top = torch.cat(
                [self._nearest(pixels_all[i : i + _BATCH], 5) for i in range(0, len(names), _BATCH)]
            )
            hits = top == self._truth(names)[:, None]
            figures |= {
                f"{kind}_top1": float(hits[:, 0].float().mean()),
                f"{kind}_top5": float(hits.any(1).float().mean()),
            }
        return figures

    def _nearest(self, pixels: Tensor, count: int) -> Tensor:
        similarity = self._encoder.embed_images(pixels) @ self._texts.T
        return similarity.topk(min(count, similarity.shape[1]), 1).indices

    def _truth(self, names: list[str]) -> Tensor:
        return torch.tensor([self._vocabulary.index[name] for name in names], device=self._device)


def to_tensor(image: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 RGB (height, width, 3) to a tensor (3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)


def crop(
    image: Tensor,
    boxes: npt.NDArray[np.float32],
    masks: npt.NDArray[np.bool_],
    policy: CropPolicy,
    side: int,
    device: torch.device,
) -> Tensor:
    """Crops (N, 3, side, side) of regions, as the service cuts them."""
    return crop_regions(
        image, torch.from_numpy(boxes).to(device), torch.from_numpy(masks).to(device), policy, side
    )


def whole_crop(image: Tensor, side: int) -> Tensor:
    """The whole image as one crop (1, 3, side, side)."""
    box = torch.tensor([[0, 0, image.shape[2], image.shape[1]]], dtype=torch.float32, device=image.device)
    return crop_regions(image, box, None, CropPolicy.BBOX, side)


def _unseen_icons(seen_set: bool) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """In an order that mixes sets and names, the same every time."""
    listed = [
        (name, pixels)
        for set_name, icons in load_icons().items()
        if (set_name not in UNSEEN_SETS) == seen_set
        for name, images in icons.items()
        if is_unseen(set_name, name)
        for pixels in images[:1]
    ]
    yield from (listed[i] for i in np.random.default_rng(0).permutation(len(listed)))


def _show(pixels: npt.NDArray[np.uint8], seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """An icon in the middle of a drawn background, and its mask."""
    rng = np.random.default_rng(HELD_OUT + seed)
    canvas = backgrounds.draw_background(rng, _CANVAS, _CANVAS, backgrounds.HELD_OUT_PHOTOGRAPHS)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    sprite = Image.fromarray(pixels)
    sprite.thumbnail((0.7 * _CANVAS, 0.7 * _CANVAS))
    left, top = (_CANVAS - sprite.width) // 2, (_CANVAS - sprite.height) // 2
    image.paste(sprite, (left, top), sprite)
    mask = np.zeros((_CANVAS, _CANVAS), bool)
    mask[top : top + sprite.height, left : left + sprite.width] = np.asarray(sprite)[..., 3] > 127
    return np.asarray(image), mask
