"""Search within an image, as LanceDB's notebook shows it: masked crops, one vector each, a LanceDB table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from benchmarks.compare import driver
from benchmarks.compare.peers import plain


class Peer(driver.Peer):
    """Every region on white; the mask is stored flat, as there."""

    version = f"lancedb {lancedb.__version__}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._models = plain.Models()
        fields = [
            ("image", pa.int64()), ("box", pa.list_(pa.int64(), 4)), ("iou", pa.float64()),
            ("mask", pa.binary()), ("vector", pa.list_(pa.float32(), self._models.dimension)),
        ]  # fmt: skip
        self._table = lancedb.connect(folder).create_table("regions", schema=pa.schema(fields), exist_ok=True)

    def add(self, first: int, items: Any) -> None:
        for number, data in enumerate(items, first):
            image = plain.opened(data)
            rows = [
                {
                    "image": number,
                    "box": plain.corners(mask),
                    "iou": mask["predicted_iou"],
                    "mask": mask["segmentation"].tobytes(),
                    "vector": self._models.image(plain.on_white(image, mask)),
                }
                for mask in self._models.masks(np.array(image))
            ]
            self._table.add(rows)

    def ask(self, query: Any, below: int | None = None) -> list[Any]:
        asked = self._table.search(self._models.text(query)).select(["image", "box", "_distance"]).limit(10)
        return [[row["image"], row["box"]] for row in asked.to_list()]

    def count(self) -> int:
        return len(set(self._table.to_arrow()["image"].to_pylist()))
