"""Closer looks at what a prompt found: its surroundings, enlarged to the encoder's whole input.

An encoder sees a large picture scaled down to its input; of a small object little is left. In the enlarged
surroundings there is more of it, and its outline is finer. Source: the Zoom-In of Sofiiuk et al. 2020,
"f-BRS: Rethinking Backpropagating Refinement for Interactive Segmentation". Looks err in different places,
so that what most of them say is better than what any one says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from services.segmenter.backends.base import Geometry, Size
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.prompts import Prompt, PromptedRegion
from services.segmenter.runs import Runs

SURROUNDINGS = 5.5, 2.5  # sides of what each closer look sees, in sides of the object's box
LARGEST_SCALE = 8.0  # encoder pixels for one of the picture; beyond that there is nothing more to see
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


def surroundings(prompt: Prompt, found: Region, geometry: Geometry, sides: float) -> Crop | None:
    """What to look at more closely.

    Args:
        prompt: What was asked.
        found: The best mask of the looks before.
        geometry: Of the whole picture.
        sides: Of what is looked at, in sides of the object's box.

    Returns:
        A part of the picture around the mask and everything that the prompt says is of the object; None where
        it would show no more: of a large object, of nothing, or with a mask to begin from, which belongs to
        the whole picture.
    """
    if not found.area or prompt.mask is not None or prompt.mask_logits is not None:
        return None
    left, top, right, bottom = found.box
    corners = [(left, top), (right + 1, bottom + 1), *prompt.points[prompt.labels == 1].tolist()]
    if prompt.box is not None:
        corners += [prompt.box[:2], prompt.box[2:]]
    height, width = geometry.image_size
    lower = np.min(corners, axis=0).clip(0, (width, height))
    upper = np.max(corners, axis=0).clip(0, (width, height))
    side = max(sides * float((upper - lower).max()), max(geometry.padded_size) / LARGEST_SCALE)
    if side * SMALLEST_GAIN > max(height, width):
        return None
    x, y = ((lower + upper) / 2).tolist()
    return square_around((x, y), side, geometry.image_size)


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
    runs = Runs.vote([voter.runs for voter in voters], [max(0.01, voter.rank[0]) for voter in voters])
    if not runs.area:
        return look
    return [replace(best, region=replace(best.region, runs=runs, box=runs.box)), *others]
