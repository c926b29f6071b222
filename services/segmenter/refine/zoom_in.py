"""Zoom-in: further passes of the model over enlarged parts of the image, around what a prompt found.

An encoder sees a large image scaled down to its input, where little is left of a small object. In an enlarged
crop the object covers more of the input, and its outline is finer. Source: the Zoom-In of Sofiiuk et al.
2020, "f-BRS: Rethinking Backpropagating Refinement for Interactive Segmentation". A model with a refiner uses
that instead, see `cascade.py`; other models run all of themselves on crops. The errors of such passes lie in
different places, so that a majority vote of their masks is better than any one of them.
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

SURROUNDINGS = 5.5, 2.5  # side of the crop of each pass, in sides of the object's box
LARGEST_SCALE = 8.0  # encoder pixels for one of the image; a larger scale adds no detail
SMALLEST_GAIN = 1.1  # enlargement below which a pass is not worth its time


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
    """The crop around a mask and all points and the box that a prompt gives for the object.

    Args:
        prompt: The prompt.
        found: Box of the best mask of the passes before.
        sides: Side of the crop, in sides of the object's box.
        image_size: Of the whole image.
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
    """The crop for a pass of the model itself; None where it would not enlarge the object enough: for large
    objects, and for empty masks.
    """
    if not found.area:
        return None
    least = max(geometry.padded_size) / LARGEST_SCALE
    crop = surroundings(prompt, found.box, sides, geometry.image_size, least)
    return None if max(crop.size) * SMALLEST_GAIN > max(geometry.image_size) else crop


def seen_from(crop: Crop, prompt: Prompt) -> Prompt:
    """A prompt in pixels of a crop, without the background points outside the crop."""
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
        passes: For each pass its masks, best first.

    Returns:
        The masks of the pass whose best mask ranks highest. That best mask is replaced by the pixels that won
        the vote of all masks of all passes, each weighted by its rank, if any pixel won.
    """
    best, *others = answer = max(passes, key=lambda found: found[0].region.rank)
    voters = [one.region for found in passes for one in found if one.region.area]
    runs = RunLengthMask.vote(
        [voter.runs for voter in voters], [max(0.01, voter.rank[0]) for voter in voters]
    )
    if not runs.area:
        return answer
    return [replace(best, region=replace(best.region, runs=runs, box=runs.box)), *others]
