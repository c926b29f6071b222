"""Every region above a threshold, boxed: crops of all masks against the words, a file at the end.

The original segments with FastSAM, whose weights cannot be had here; the bundled SAM is in its place.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import driver
from benchmarks.compare.peers import plain

LEAST = 0.28


class Peer(driver.Peer):
    """Plain crops, with what is around the object."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._models, self._file = plain.Models(), folder / "regions.pickle"
        self._images: dict[int, list[Any]] = {}
        if self._file.exists():
            self._images = pickle.loads(self._file.read_bytes())

    def add(self, first: int, items: Any) -> None:
        for number, data in enumerate(items, first):
            image = plain.opened(data)
            boxes = [plain.corners(mask) for mask in self._models.masks(np.array(image))]
            self._images[number] = [(box, self._models.image(image.crop(box))) for box in boxes]

    def finish(self) -> None:
        self._file.write_bytes(pickle.dumps(self._images))

    def ask(self, query: Any, below: int | None = None) -> list[Any]:
        words = self._models.text(query)
        return [
            [number, box]
            for number, regions in self._images.items()
            for box, vector in regions
            if float(words @ vector) > LEAST
        ]

    def count(self) -> int:
        return len(self._images)
