"""FAISS in this process, exact: one call a query, with a bitmap made for its filter; a file when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.compare import driver


class Peer(driver.Peer):
    """`IndexFlatIP`."""

    version = faiss.__version__

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "index.faiss"
        self._index: Any = faiss.IndexFlatIP(512)
        self._parts = np.zeros(0, np.int64)
        if self._file.exists():
            self._index, self._parts = faiss.read_index(str(self._file)), np.load(folder / "parts.npy")

    def add(self, first: int, items: Any) -> None:
        vectors, parts = items
        self._index.add(vectors)
        self._parts = np.concatenate([self._parts, parts])

    def finish(self) -> None:
        faiss.write_index(self._index, str(self._file))
        np.save(self.folder / "parts.npy", self._parts)

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        parameters: Any = None
        if below is not None:
            bits = np.packbits(self._parts < below, bitorder="little")
            arrays: Any = faiss  # its stubs are those of C++
            parameters = arrays.SearchParameters(sel=arrays.IDSelectorBitmap(bits))
        _, rows = self._index.search(query[np.newaxis], 10, params=parameters)
        found: list[int] = rows[0].tolist()
        return found

    def count(self) -> int:
        return int(self._index.ntotal)
