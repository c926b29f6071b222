"""What a system has to beat: one vector an image, and a fixed grid of crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation import rle
from evaluation.rle import Rle
from evaluation.system import Proposals, Regions
from regionsearch.images import Pixels


@dataclass(frozen=True)
class GridSegmenter:
    """Cuts an image into n x n equal boxes for each n, whatever it shows; `(1,)` is the whole image."""

    sides: tuple[int, ...] = (1, 2, 3, 4)

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.Segmenter`."""
        return {"code": "grid", "sides": list(self.sides)}

    def everything(self, pixels: Pixels) -> Proposals:
        """See `evaluation.system.Segmenter`."""
        height, width = pixels.shape[:2]
        boxes = [
            (width * x / n, height * y / n, width * (x + 1) / n, height * (y + 1) / n)
            for n in self.sides
            for y in range(n)
            for x in range(n)
        ]
        regions = Regions([rle.rectangle(height, width, box) for box in boxes], np.ones(len(boxes)))
        return Proposals(regions, regions)

    def click(self, pixels: Pixels, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """The smallest box that holds the click."""
        found = self.everything(pixels).found.masks
        planes = [(rle.area(mask), mask, rle.decode(mask)) for mask in found]
        planes.sort(key=lambda entry: entry[0])
        return [next(mask for _, mask, plane in planes if plane[y, x]) for x, y in points]
