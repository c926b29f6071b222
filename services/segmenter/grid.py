"""Crops and grids of points of everything mode.

The arithmetic follows ``segment_anything.utils.amg``, so that results are identical.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regionsearch.images import Pixels
from regionsearch.masks import PixelBox
from services.segmenter.backends.base import Size
from services.segmenter.options import EverythingOptions


@dataclass(frozen=True)
class Crop:
    """A part of the image that is encoded separately; half-open pixel ranges.

    Attributes:
        layer: 0 for the whole image.
    """

    left: int
    top: int
    right: int
    bottom: int
    layer: int

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    @classmethod
    def whole(cls, image_size: Size) -> Crop:
        """The crop that is the whole image."""
        return cls(0, 0, image_size[1], image_size[0], 0)

    def cut(self, pixels: Pixels) -> Pixels:
        """Cuts the crop out of the image's pixels."""
        return np.ascontiguousarray(pixels[self.top : self.bottom, self.left : self.right])

    def moved(self, box: PixelBox) -> PixelBox:
        """Translates a box from pixels of the crop to pixels of the image."""
        left, top, right, bottom = box
        return left + self.left, top + self.top, right + self.left, bottom + self.top


def plan_crops(image_size: Size, options: EverythingOptions) -> list[Crop]:
    """The whole image, then the crops of each layer, column by column."""
    height, width = image_size
    crops = [Crop.whole(image_size)]
    for layer in range(1, options.crop_n_layers + 1):
        count = 2**layer
        overlap = int(options.crop_overlap_ratio * min(height, width) * (2 / count))
        crop_width = math.ceil((overlap * (count - 1) + width) / count)
        crop_height = math.ceil((overlap * (count - 1) + height) / count)
        for left in (int((crop_width - overlap) * i) for i in range(count)):
            for top in (int((crop_height - overlap) * i) for i in range(count)):
                right, bottom = min(left + crop_width, width), min(top + crop_height, height)
                # Images of a few pixels have room for fewer crops than a layer asks for.
                if left < right and top < bottom:
                    crops.append(Crop(left, top, right, bottom, layer))
    return crops


def grid_points(crop: Crop, options: EverythingOptions) -> NDArray[np.float64]:
    """The grid's points, (n, 2) as x, y in pixels of the crop, row by row."""
    per_side = options.side(crop.layer)
    offset = 1 / (2 * per_side)
    ticks = np.linspace(offset, 1 - offset, per_side)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    scaled: NDArray[np.float64] = points * np.array(crop.size)[None, ::-1]
    return scaled
