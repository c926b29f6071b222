"""Closer looks at what a prompt found.

An encoder sees a large image scaled down to its input; of a small object little is left. In its
surroundings, enlarged, there is more of it, and its outline is finer. Source: the Zoom-In of Sofiiuk et al.
2020, "f-BRS: Rethinking Backpropagating Refinement for Interactive Segmentation". A model with a refiner
looks with that, see `refining.py`; others look with all of themselves at parts of the image. Such looks err
in different places, so that what most of them say is better than what any one says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regionsearch.masks import PixelBox, RunLengthMask
from services.segmenter.backends.base import Geometry, Size
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion

SURROUNDINGS = 5.5, 2.5  # sides of each look, in sides of the object's box
LARGEST_SCALE = 8.0  # encoder pixels for one of the image; beyond that there is nothing more to see
SMALLEST_GAIN = 1.1  # of enlargement, for which a look is worth its time


def square_around(middle: tuple[float, float], side: float, image_size: Size) -> Crop:
    """The square of this side around a point (x, y), moved into the image, cut off where it is larger."""
    height, width = image_size
    side = round(side)
    left, top = (
        round(min(max(at - side / 2, 0), max(0, extent - side)))
        for at, extent in zip(middle, (width, height), strict=True)
    )
    return Crop(left, top, min(left + side, width), min(top + side, height), 1)


def surroundings(prompt: Prompt, found: PixelBox, sides: float, image_size: Size, least: float = 1.0) -> Crop:
    """The part of an image around a mask and everything that a prompt says is of the object.

    Args:
        prompt: What was asked.
        found: Box of the best mask of the passes before.
        sides: Of the part, in sides of the object's box.
        image_size: Of the whole image.
        least: Side of the part at least, in pixels.

    Returns:
        A square inside the image, or as much of it as the image has.
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
    """The surroundings as the model itself may look at them; None where it would see no more than before:
    of a large object, or of nothing.
    """
    if not found.area:
        return None
    least = max(geometry.padded_size) / LARGEST_SCALE
    crop = surroundings(prompt, found.box, sides, geometry.image_size, least)
    return None if max(crop.size) * SMALLEST_GAIN > max(geometry.image_size) else crop


def seen_from(crop: Crop, prompt: Prompt) -> Prompt:
    """A prompt in pixels of a crop, without the background points outside of it."""
    corner = np.array([crop.left, crop.top])
    points = prompt.points - corner
    inside = (points >= 0).all(1) & (points < np.array(crop.size)[::-1]).all(1)
    kept = inside | (prompt.labels == 1)
    box = prompt.box
    if box is not None:
        box = (box[0] - crop.left, box[1] - crop.top, box[2] - crop.left, box[3] - crop.top)
    return replace(prompt, points=points[kept], labels=prompt.labels[kept], box=box)


def agree(looks: Sequence[list[PromptedRegion]]) -> list[PromptedRegion]:
    """What several looks say together.

    Args:
        looks: For each look its masks, best first.

    Returns:
        The masks of the look whose best mask ranks highest. In the place of that mask stand the pixels that
        masks of more than half of the weight have, if there are any: all masks of all looks vote, each with
        its rank.
    """
    best, *others = look = max(looks, key=lambda look: look[0].region.rank)
    voters = [answer.region for look in looks for answer in look if answer.region.area]
    runs = RunLengthMask.vote(
        [voter.runs for voter in voters], [max(0.01, voter.rank[0]) for voter in voters]
    )
    if not runs.area:
        return look
    return [replace(best, region=replace(best.region, runs=runs, box=runs.box)), *others]
