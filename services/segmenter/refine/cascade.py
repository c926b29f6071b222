"""The cascade of a model's refiner (the close-up of each pass, the mask of the last one), and zoom-in.

Zoom-in is for models without a refiner: further passes of the whole model over enlarged parts of the image,
around what a prompt found. An encoder sees a large image scaled down to its input, which leaves little of a
small object. In an enlarged crop the object covers more of the input, and its outline is finer. Source: the
Zoom-In of Sofiiuk et al. 2020, "f-BRS: Rethinking Backpropagating Refinement for Interactive Segmentation".
The errors of such passes differ, so that a majority vote of their masks is better than any one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionsearch.images import Pixels
from regionsearch.masks import PixelBox, RunLengthMask
from services.segmenter.backends.base import Geometry, ResizeStep, Size
from services.segmenter.backends.refiner import MASKS, Refiner, RefinerInput
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion, draw_masks
from services.segmenter.upscale import Upscaler

CLOSE_UPS = 2.5, 2.0, 1.7  # side of each pass's close-up, in sides of the box that the pass before found
SMALLEST_CLOSE_UP = 16.0  # pixels along its side
LEAST_IOU = 0.5  # lowest predicted IoU that a mask is drawn with


@dataclass(frozen=True)
class RefineTarget:
    """An object whose mask is to be refined.

    Attributes:
        pixels: The whole image, uint8 RGB (height, width, 3).
        geometry: The geometry of the whole image.
        prompt: The prompt, in pixels of the image.
        masks: The masks of the first pass over the whole image, see `first_masks`.
        box: The box of the best of these masks, inclusive edges.
    """

    pixels: Pixels
    geometry: Geometry
    prompt: Prompt
    masks: NDArray[np.uint8]
    box: PixelBox

    def close_up(self, crop: Crop) -> RefinerInput:
        """The refiner's input for a part of the image."""
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
    """Result of the last pass over an object: logits (h, w) for a crop of the image, and predicted IoU."""

    logits: Tensor
    iou: float
    crop: Crop


def first_masks(answer: Sequence[PromptedRegion]) -> NDArray[np.uint8]:
    """Converts the masks of the first pass for the refiner: probabilities (MASKS, h, w), 255 for certain.

    A single mask is repeated.
    """
    logits = [answer[min(place, len(answer) - 1)].low_res_logits for place in range(MASKS)]
    probabilities = torch.from_numpy(np.stack(logits)).sigmoid() * 255
    masks: NDArray[np.uint8] = probabilities.round().to(torch.uint8).numpy()
    return masks


def refine_in_passes(refiner: Refiner, targets: Sequence[RefineTarget]) -> list[Refined | None]:
    """Refines all masks in one batch, on the device; each pass looks closer at what the one before found.

    Returns:
        For each target the result of the last pass; None if a pass found nothing.
    """
    boxes: list[PixelBox | None] = [target.box for target in targets]
    refined: list[Refined | None] = [None] * len(targets)
    for sides in CLOSE_UPS:
        crops = {
            place: surroundings(
                target.prompt, box, sides, target.geometry.image_size, least=SMALLEST_CLOSE_UP
            )
            for place, (target, box) in enumerate(zip(targets, boxes, strict=True))
            if box is not None
        }
        if not crops:
            break
        shown = [refiner.prepare(targets[place].close_up(crop)) for place, crop in crops.items()]
        logits, ious = refiner.refine(shown)
        found = _boxes(logits, list(crops.values()))
        for (place, crop), mask, iou, box in zip(crops.items(), logits, ious.tolist(), found, strict=True):
            boxes[place] = box
            refined[place] = Refined(mask, iou, crop) if box is not None else None
    return refined


def _boxes(logits: Tensor, crops: Sequence[Crop]) -> list[PixelBox | None]:
    """Boxes, in pixels of the image, of masks (n, h, w) that cover the squares of crops.

    They are exact to a cell of the logits, which is enough for the next close-up.
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
    """Draws the region of the refiner's logits; returns a list of one.

    A pixel that belongs to the object with probability p adds p to the intersection and 1 - p to the union.
    Including it pays off where p / (1 - p), whose logarithm is the logit, exceeds the IoU of the mask without
    it. Source: Nowozin 2014, "Optimal Decisions from Probabilistic Models: the
    Intersection-over-Union Case".
    """
    side, logits = max(refined.crop.size), refined.logits
    threshold = math.log(max(refined.iou, LEAST_IOU))
    upscaler = Upscaler(refiner.mask_size, (ResizeStep((side, side), refined.crop.size),), logits.device)
    return draw_masks(upscaler, logits[None], [refined.iou], threshold, refined.crop, geometry.image_size)


SURROUNDINGS = 5.5, 2.5  # side of the crop of each pass, in sides of the object's box
LARGEST_SCALE = 8.0  # encoder pixels per pixel of the image; a larger scale does not add detail
SMALLEST_GAIN = 1.1  # enlargement below which a pass is not worth its time


def square_around(middle: tuple[float, float], side: float, image_size: Size) -> Crop:
    """A square around a point (x, y), moved into the image, and cut off if it is larger than the image."""
    height, width = image_size
    side = round(side)
    left, top = (
        round(min(max(at - side / 2, 0), max(0, extent - side)))
        for at, extent in zip(middle, (width, height), strict=True)
    )
    return Crop(left, top, min(left + side, width), min(top + side, height), 1)


def surroundings(prompt: Prompt, found: PixelBox, sides: float, image_size: Size, least: float = 1.0) -> Crop:
    """The crop around a mask and all points and the box that a prompt gives for the object.

    Args:
        prompt: The prompt.
        found: Box of the best mask of the previous passes.
        sides: Side of the crop, in sides of the object's box.
        image_size: (height, width) of the whole image.
        least: Smallest side of the crop, in pixels.

    Returns:
        A square inside the image, cut off where it is larger than the image.
    """
    left, top, right, bottom = found
    corners = [(left, top), (right + 1, bottom + 1), *prompt.points[prompt.labels == 1].tolist()]
    if prompt.box is not None:
        corners += [prompt.box[:2], prompt.box[2:]]
    height, width = image_size
    lower = np.min(corners, axis=0).clip(0, (width, height))
    upper = np.max(corners, axis=0).clip(0, (width, height))
    x, y = ((lower + upper) / 2).tolist()
    return square_around((x, y), max(sides * float((upper - lower).max()), least), image_size)


def enlarged(prompt: Prompt, found: Region, sides: float, geometry: Geometry) -> Crop | None:
    """The crop for a zoom-in pass; None if that would hardly enlarge the object, or the mask is empty."""
    if not found.area:
        return None
    least = max(geometry.padded_size) / LARGEST_SCALE
    crop = surroundings(prompt, found.box, sides, geometry.image_size, least)
    return None if max(crop.size) * SMALLEST_GAIN > max(geometry.image_size) else crop


def seen_from(crop: Crop, prompt: Prompt) -> Prompt:
    """Translates a prompt to pixels of a crop, without background points outside of the crop."""
    corner = np.array([crop.left, crop.top])
    points = prompt.points - corner
    inside = (points >= 0).all(1) & (points < np.array(crop.size)[::-1]).all(1)
    kept = inside | (prompt.labels == 1)
    box = prompt.box
    if box is not None:
        box = (box[0] - crop.left, box[1] - crop.top, box[2] - crop.left, box[3] - crop.top)
    return replace(prompt, points=points[kept], labels=prompt.labels[kept], box=box)


def agree(passes: Sequence[list[PromptedRegion]]) -> list[PromptedRegion]:
    """Combines the answers of several passes by a vote.

    Args:
        passes: The masks of each pass, best first.

    Returns:
        The masks of the pass whose best mask ranks highest, with that best mask replaced by the pixels that
        won a vote of all masks of all passes, weighted by rank; unchanged if no pixel won.
    """
    best, *others = answer = max(passes, key=lambda found: found[0].region.rank)
    voters = [one.region for found in passes for one in found if one.region.area]
    runs = RunLengthMask.vote(
        [voter.runs for voter in voters], [max(0.01, voter.rank[0]) for voter in voters]
    )
    if not runs.area:
        return answer
    return [replace(best, region=replace(best.region, runs=runs, box=runs.box)), *others]
