"""qdrant-edge: Qdrant's engine in this process, with a graph and an index of the filtered field."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from benchmarks.compare import driver


class Peer(driver.Peer):
    """Its defaults; the write-ahead log is on."""

    version = version("qdrant-edge-py")
    efforts = (64, 128, 256, 512)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if any(folder.iterdir()):
            self._shard = edge.EdgeShard.load(str(folder))
            return
        vectors = edge.EdgeVectorParams(512, edge.Distance.Dot)
        self._shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors, wal_enabled=True))
        self._shard.update(edge.UpdateOperation.create_field_index("part", edge.PayloadSchemaType.Integer))

    def add(self, first: int, items: Any) -> None:
        vectors, parts = items
        points = [
            edge.Point(first + row, vector.tolist(), {"part": int(part)})
            for row, (vector, part) in enumerate(zip(vectors, parts, strict=True))
        ]
        self._shard.update(edge.UpdateOperation.upsert_points(points))

    def finish(self) -> None:
        self._shard.optimize()
        self._shard.flush()

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        passing = None
        if below is not None:
            passing = edge.Filter(must=[edge.FieldCondition("part", range=edge.RangeFloat(lt=below))])
        asked = edge.SearchRequest(
            query=edge.Query.Nearest(query.tolist()), limit=10, filter=passing,
            params=edge.SearchParams(hnsw_ef=self.effort),
        )  # fmt: skip
        return [int(point.id) for point in self._shard.search(asked)]

    def count(self) -> int:
        return int(self._shard.count(edge.CountRequest(exact=True)))

    def stop(self) -> None:
        self._shard.close()
