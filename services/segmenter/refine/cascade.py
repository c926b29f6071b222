"""Closer looks with a model's refiner: what it is shown, look after look, and the mask that comes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.images import Pixels
from regionsearch.masks import PixelBox
from services.segmenter.backends.base import Geometry, ResizeStep
from services.segmenter.backends.refiner import MASKS, Refiner, RefinerInput
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion, draw_masks
from services.segmenter.refine.zoom_in import seen_from, surroundings
from services.segmenter.upscale import Upscaler

CLOSE_UPS = 2.5, 2.0, 1.7  # sides of each look, in sides of the box that the one before found
SMALLEST_CLOSE_UP = 16.0  # pixels along its side
LEAST_IOU = 0.5  # that a mask is drawn for, however little the refiner thinks of it


@dataclass(frozen=True)
class RefineTarget:
    """An object that the refiner shall look at.

    Attributes:
        pixels: Of the whole image, uint8 RGB (height, width, 3).
        geometry: Of the whole image.
        prompt: What was asked, in pixels of the image.
        masks: Of the first look at the whole image, see `first_masks`.
        box: Of the best of them, edges inclusive.
    """

    pixels: Pixels
    geometry: Geometry
    prompt: Prompt
    masks: NDArray[np.uint8]
    box: PixelBox

    def close_up(self, crop: Crop) -> RefinerInput:
        """What the refiner is shown of a part of the image."""
        moved = seen_from(crop, self.prompt)
        corners = np.array([[crop.left, crop.top], [crop.right, crop.bottom]], np.float64)
        padded = np.array(self.geometry.padded_size)[::-1]
        window = self.geometry.to_input(corners) * np.array(self.masks.shape[:0:-1]) / padded
        (left, top), (right, bottom) = window.tolist()
        pixels = crop.cut(self.pixels)
        return RefinerInput(
            pixels, moved.points, moved.labels, moved.box, self.masks, (left, top, right, bottom)
        )


@dataclass(frozen=True)
class Refined:
    """What the last look at an object found: logits (h, w) for a part of the image, and predicted IoU."""

    logits: Tensor
    iou: float
    crop: Crop


def first_masks(answer: Sequence[PromptedRegion]) -> NDArray[np.uint8]:
    """The masks of a first look as the refiner sees them: probabilities (MASKS, h, w), 255 for certain.

    A single one stands in the place of all.
    """
    logits = [answer[min(place, len(answer) - 1)].low_res_logits for place in range(MASKS)]
    probabilities = torch.from_numpy(np.stack(logits)).sigmoid() * 255
    masks: NDArray[np.uint8] = probabilities.round().to(torch.uint8).numpy()
    return masks


def refine_in_passes(refiner: Refiner, subjects: Sequence[RefineTarget]) -> list[Refined | None]:
    """Looks at objects, all together, each time around what the look before found; on the device.

    Returns:
        For each object what the last look found; None where one of the looks found nothing.
    """
    boxes: list[PixelBox | None] = [subject.box for subject in subjects]
    refined: list[Refined | None] = [None] * len(subjects)
    for sides in CLOSE_UPS:
        crops = {
            place: surroundings(
                subject.prompt, box, sides, subject.geometry.image_size, least=SMALLEST_CLOSE_UP
            )
            for place, (subject, box) in enumerate(zip(subjects, boxes, strict=True))
            if box is not None
        }
        if not crops:
            break
        shown = [refiner.prepare(subjects[place].close_up(crop)) for place, crop in crops.items()]
        logits, ious = refiner.refine(shown)
        found = _boxes(logits, list(crops.values()))
        for (place, crop), mask, iou, box in zip(crops.items(), logits, ious.tolist(), found, strict=True):
            boxes[place] = box
            refined[place] = Refined(mask, iou, crop) if box is not None else None
    return refined


def _boxes(logits: Tensor, crops: Sequence[Crop]) -> list[PixelBox | None]:
    """Where masks (n, h, w) that lie over the squares of parts are, in pixels of the image.

    As far as the cells of the logits tell; a close-up needs no sharper box.
    """
    inside = logits > 0
    edges = torch.cat([inside.any(1), inside.any(2)], 1).cpu().numpy()
    boxes: list[PixelBox | None] = []
    for columns, rows, crop in zip(*np.split(edges, [logits.shape[2]], 1), crops, strict=True):
        scale = max(crop.size) / logits.shape[2]
        bottom, right = (extent - 1 for extent in crop.size)
        (across,), (down,) = columns.nonzero(), rows.nonzero()
        if len(across):
            low = min(int(across[0] * scale), right), min(int(down[0] * scale), bottom)
            high = min(int((across[-1] + 1) * scale), right), min(int((down[-1] + 1) * scale), bottom)
            boxes.append(crop.moved((*low, *high)))
        else:
            boxes.append(None)
    return boxes


@torch.inference_mode()
def draw_refined(refiner: Refiner, refined: Refined, geometry: Geometry) -> list[Region]:
    """The one region of the image that the refiner's logits stand for.

    A pixel that belongs to the object with chance p adds p to intersection over 1 - p to union. It is worth
    having where p / (1 - p), of which the logit is the logarithm, is more than the IoU that the mask has
    without it. Source: Nowozin 2014, "Optimal Decisions from Probabilistic Models: the
    Intersection-over-Union Case".
    """
    side, logits = max(refined.crop.size), refined.logits
    threshold = math.log(max(refined.iou, LEAST_IOU))
    upscaler = Upscaler(refiner.mask_size, (ResizeStep((side, side), refined.crop.size),), logits.device)
    return draw_masks(upscaler, logits[None], [refined.iou], threshold, refined.crop, geometry.image_size)
