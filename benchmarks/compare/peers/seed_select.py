"""Segment, then select: the 25 largest regions, small ones with context, 256-bit codes, a second look.

The original learns its hash; here its matrix is a random rotation, which takes as long.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.compare import driver
from benchmarks.compare.peers import plain

LARGEST, BITS, SECOND_LOOK = 25, 256, 100


class Peer(driver.Peer):
    """A FAISS index of codes, and the vectors to score its candidates again; a file at the end."""

    version = f"FAISS {faiss.__version__}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._models, self._file = plain.Models(), folder / "index.pickle"
        self._codes: Any = faiss.IndexBinaryFlat(BITS)
        self._vectors: list[plain.Vector] = []
        self._about: list[tuple[int, Any]] = []
        if self._file.exists():
            stored, self._vectors, self._about = pickle.loads(self._file.read_bytes())
            self._codes = faiss.deserialize_index_binary(stored)
        matrix = np.random.default_rng(0).standard_normal((self._models.dimension, BITS))
        self._matrix = matrix.astype(np.float32)

    def add(self, first: int, items: Any) -> None:
        for number, data in enumerate(items, first):
            image = plain.opened(data)
            masks = sorted(self._models.masks(np.array(image)), key=lambda mask: -mask["area"])
            for mask in masks[:LARGEST]:
                vector = self._models.image(self._crop(image, mask))
                self._codes.add(self._code(vector))
                self._vectors.append(vector)
                self._about.append((number, plain.corners(mask)))

    def finish(self) -> None:
        stored: Any = faiss.serialize_index_binary(self._codes)
        self._file.write_bytes(pickle.dumps((stored, self._vectors, self._about)))

    def ask(self, query: Any, below: int | None = None) -> list[Any]:
        words = self._models.text(query)
        _, rows = self._codes.search(self._code(words), SECOND_LOOK)
        candidates = [row for row in rows[0] if row >= 0]
        candidates.sort(key=lambda row: -float(words @ self._vectors[row]))
        return [self._about[row] for row in candidates[:10]]

    def count(self) -> int:
        return len({number for number, _ in self._about})

    def _code(self, vector: plain.Vector) -> Any:
        return np.packbits(np.tanh(vector @ self._matrix) > 0)[np.newaxis]

    def _crop(self, image: Any, mask: dict[str, Any]) -> Any:
        left, top, right, bottom = plain.corners(mask)
        area = (right - left) * (bottom - top)
        if area > 9216:
            return plain.on_white(image, mask)
        aside = (3 if area <= 1024 else 1) - 1
        x, y = aside * (right - left) // 2, aside * (bottom - top) // 2
        return image.crop((max(0, left - x), max(0, top - y), right + x, bottom + y))
