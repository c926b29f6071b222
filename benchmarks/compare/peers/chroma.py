"""Chroma in this process: records in SQLite, a graph that is written every thousand rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb

from benchmarks.compare import driver


class Peer(driver.Peer):
    """Its defaults, but for the search effort, which is fixed when a collection is made."""

    version = chromadb.__version__

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        settings = chromadb.Settings(anonymized_telemetry=False)
        graph = {"space": "ip", "ef_search": 200, "ef_construction": 200}
        self._rows = chromadb.PersistentClient(str(folder), settings).get_or_create_collection(
            "rows", configuration={"hnsw": graph}, embedding_function=None
        )

    def add(self, first: int, items: Any) -> None:
        vectors, parts = items
        self._rows.add(
            ids=[str(row) for row in range(first, first + len(vectors))],
            embeddings=vectors,
            metadatas=[{"part": int(part)} for part in parts],
        )

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        where: Any = None if below is None else {"part": {"$lt": below}}
        found = self._rows.query(query_embeddings=[query], n_results=10, where=where, include=[])
        return [int(name) for name in found["ids"][0]]

    def count(self) -> int:
        return int(self._rows.count())
