"""hnswlib: a graph in this process's memory, and a file when asked; filters are Python functions."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from benchmarks.compare import driver


class Peer(driver.Peer):
    """M 16, ef_construction 200, as its page recommends for high recall."""

    version = version("hnswlib")
    efforts = (50, 100, 200, 400, 800)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._index = hnswlib.Index(space="ip", dim=512)
        self._file = folder / "index"
        self._parts = np.zeros(0, np.int64)
        if self._file.exists():
            self._index.load_index(str(self._file))
            self._parts = np.load(folder / "parts.npy")
        else:
            self._index.init_index(max_elements=1000, M=16, ef_construction=200)

    def add(self, first: int, items: Any) -> None:
        vectors, parts = items
        if first + len(vectors) > self._index.get_max_elements():
            self._index.resize_index(2 * (first + len(vectors)))
        self._index.add_items(vectors, np.arange(first, first + len(vectors)))
        self._parts = np.concatenate([self._parts, parts])

    def finish(self) -> None:
        self._index.save_index(str(self._file))
        np.save(self.folder / "parts.npy", self._parts)

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        self._index.set_ef(self.effort)
        passes = None if below is None else lambda row: bool(self._parts[row] < below)
        rows, _ = self._index.knn_query(query, k=10, num_threads=1, filter=passes)
        found: list[int] = rows[0].tolist()
        return found

    def count(self) -> int:
        return int(self._index.get_current_count())
