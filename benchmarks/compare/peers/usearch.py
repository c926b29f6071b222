"""usearch: a graph in this process's memory, and a file when asked; no filters from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import usearch
from usearch.index import Index

from benchmarks.compare import driver


class Peer(driver.Peer):
    """Its defaults, with vectors in float32."""

    version = usearch.__version__
    efforts = (64, 128, 256, 512, 1024)
    filters = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "index.usearch"
        self._index = Index(ndim=512, metric="ip", dtype="f32")
        if self._file.exists():
            self._index.load(str(self._file))

    def add(self, first: int, items: Any) -> None:
        self._index.add(np.arange(first, first + len(items[0])), items[0])

    def finish(self) -> None:
        self._index.save(str(self._file))

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        if self._index.expansion_search != self.effort:
            self._index.expansion_search = self.effort
        found: list[int] = self._index.search(query, 10, threads=1).keys.tolist()
        return found

    def count(self) -> int:
        return len(self._index)
