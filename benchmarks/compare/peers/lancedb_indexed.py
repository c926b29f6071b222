"""LanceDB with its graph index: partitions, each a graph of vectors in 8 bits, the best ones scored again."""

from __future__ import annotations

from typing import Any

from benchmarks.compare.peers import lancedb


class Peer(lancedb.Peer):
    """IVF_HNSW_SQ with its defaults."""

    efforts = (50, 100, 200, 400)

    def finish(self) -> None:
        super().finish()
        self._table.create_index(metric="dot", index_type="IVF_HNSW_SQ", vector_column_name="vector")

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        asked = self._table.search(query).distance_type("dot").select(["row", "_distance"]).limit(10)
        asked = asked.nprobes(20).ef(self.effort).refine_factor(4)
        if below is not None:
            asked = asked.where(f"part < {below}", prefilter=True)
        found: list[int] = asked.to_arrow()["row"].to_pylist()
        return found
