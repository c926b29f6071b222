"""The mask of a class: the union of all masks that are near enough to its name, one image after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import driver
from benchmarks.compare.peers import plain

LEAST = 0.28


class Peer(driver.Peer):
    """Masks and vectors of an image in one file, read again for every question."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._models = plain.Models()

    def add(self, first: int, items: Any) -> None:
        for number, data in enumerate(items, first):
            image = plain.opened(data)
            masks = self._models.masks(np.array(image))
            vectors = [self._models.image(image.crop(plain.corners(mask))) for mask in masks]
            drawn = np.array([mask["segmentation"] for mask in masks])
            np.savez_compressed(self.folder / f"{number}.npz", masks=drawn, vectors=np.array(vectors))

    def ask(self, query: Any, below: int | None = None) -> list[Any]:
        words, found = self._models.text(query), []
        for file in self.folder.glob("*.npz"):
            kept = np.load(file)
            near = kept["vectors"] @ words > LEAST
            found.append([file.stem, int(kept["masks"][near].any(0).sum()) if near.any() else 0])
        return found

    def count(self) -> int:
        return len(list(self.folder.glob("*.npz")))
