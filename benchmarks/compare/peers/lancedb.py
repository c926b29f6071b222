"""LanceDB in this process: a table on disk, searched exactly, with an index of the filtered column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from benchmarks.compare import driver


class Peer(driver.Peer):
    """Without an index of vectors, as its documentation says for tables of this size."""

    version = lancedb.__version__

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        fields = [("row", pa.int64()), ("part", pa.int64()), ("vector", pa.list_(pa.float32(), 512))]
        self._schema = pa.schema(fields)
        self._table = lancedb.connect(folder).create_table("rows", schema=self._schema, exist_ok=True)

    def add(self, first: int, items: Any) -> None:
        vectors, parts = items
        columns = {
            "row": pa.array(np.arange(first, first + len(vectors))),
            "part": pa.array(parts),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 512),
        }
        self._table.add(pa.table(columns, schema=self._schema))

    def finish(self) -> None:
        self._table.optimize()
        self._table.create_scalar_index("part")

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        asked = self._table.search(query).distance_type("dot").select(["row", "_distance"]).limit(10)
        if below is not None:
            asked = asked.where(f"part < {below}", prefilter=True)
        found: list[int] = asked.to_arrow()["row"].to_pylist()
        return found

    def count(self) -> int:
        return int(self._table.count_rows())
