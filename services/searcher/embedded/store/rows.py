"""What a committed write hands from the record store to the index."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from services.searcher.types import Vectors

Keys = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """New rows for the index: one array a column, in ascending order of `key`. `vectors` is as stored."""

    key: Keys
    image: Keys
    level: NDArray[np.uint8]
    area: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    created_ms: Keys
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.key)

    def part(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop`, without copying them."""
        if (start, stop) == (0, len(self)):
            return self
        return Rows(**{column.name: getattr(self, column.name)[start:stop] for column in fields(self)})


@dataclass(frozen=True, slots=True)
class Change:
    """What a committed write means for the index of its collection.

    `described` says that tags or attributes of images have changed, which filters ask for.
    """

    collection: int
    seq: int
    rows: Rows | None = None
    removed: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    described: bool = False
