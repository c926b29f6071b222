"""Values that pass between the record store and the index, which do not import each other."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from services.searcher.types import Vectors

RowIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HighestRowids:
    """The highest rowids that were ever given to an image and to a record. Rowids only grow."""

    image: int = 0
    record: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """New rows for the index: one array a column, in ascending order of `key`. `vectors` is as stored."""

    record_rowid: RowIds
    image_rowid: RowIds
    level: NDArray[np.uint8]
    area: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    created_ms: RowIds
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.record_rowid)

    def part(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop`, without copying them."""
        if (start, stop) == (0, len(self)):
            return self
        return Rows(**{column.name: getattr(self, column.name)[start:stop] for column in fields(self)})


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of a committed write on the index of its collection.

    `described` is set where tags or attributes of images have changed, which filters read.
    """

    collection: int
    seq: int
    rows: Rows | None = None
    removed: RowIds = field(default_factory=lambda: np.empty(0, np.int64))
    described: bool = False
