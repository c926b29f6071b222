"""The columns of rows in memory, which filters read.

A segment's rows lie in ascending order of key and of the write that added them. The writing thread appends
behind the rows that readers know of, and marks removals in place with the number of the removing write; a
reader that looks at write `s` sees the rows with ``added <= s < removed``. So neither side ever waits for
the other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.types import Vectors

Mask = NDArray[np.bool_]
Positions = NDArray[np.intp]
Contents = NDArray[np.uint64]
NEVER = np.iinfo(np.int64).max
"""The removing write of rows that are there."""

_SEED = 20_111

_COLUMNS: dict[str, type[np.generic]] = {
    "record_rowid": np.int64,
    "image_rowid": np.int64,
    "level": np.uint8,
    "area": np.int64,
    "predicted_iou": np.float32,
    "stability_score": np.float32,
    "created_ms": np.int64,
    "added": np.int64,
    "removed": np.int64,
    "scale": np.float32,
    "content": np.uint64,
}
_COMPUTED = ("added", "removed", "scale", "content")


class Columns:
    """Everything but the vector of each row, one array a column.

    Attributes:
        scale: One over the length of the stored vector, which rounding to half precision moves off one.
        content: Equal for equal vectors, different for different ones.
        used: Rows written so far; readers take the number from their own view instead.
        dead: Tombstones, the rows marked removed.
        orders: Rows of some blocks in the order of their ids, by block (see `queries/tie_order.py`).
    """

    record_rowid: RowIds
    image_rowid: RowIds
    level: NDArray[np.uint8]
    area: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability_score: NDArray[np.float32]
    created_ms: RowIds
    added: RowIds
    removed: RowIds
    scale: Vectors
    content: Contents

    def __init__(self, capacity: int) -> None:
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.empty(capacity, dtype))
        self.capacity = capacity
        self.used = 0
        self.dead = 0
        self.orders: dict[int, tuple[int, Positions]] = {}
        self._by_image: tuple[int, Positions] | None = None
        self._ascending = (
            True  # whether images lie in ascending order, as they do unless old ones get records
        )

    def write(self, rows: Rows, added: RowIds, start: int, stop: int) -> None:
        """Appends rows `start` to `stop` of a batch. The caller publishes them."""
        place = slice(self.used, self.used + stop - start)
        for name in _COLUMNS:
            if name not in _COMPUTED:
                getattr(self, name)[place] = getattr(rows, name)[start:stop]
        vectors = rows.vectors[start:stop]
        self.added[place] = added[start:stop]
        self.removed[place] = NEVER
        self.scale[place] = 1.0 / np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        self.content[place] = contents(vectors)
        self._note_order(place)
        self.used = place.stop

    def take(self, other: Columns, rows: Positions) -> None:
        """Appends chosen rows of other columns, removals included."""
        place = slice(self.used, self.used + len(rows))
        for name in _COLUMNS:
            getattr(self, name)[place] = getattr(other, name)[rows]
        self.dead += int(np.count_nonzero(self.removed[place] != NEVER))
        self._note_order(place)
        self.used = place.stop

    def spread(self, keys: RowIds, contents: Contents) -> Columns | None:
        """These rows at their places among `keys`; those that are not here are marked removed long ago.

        None unless all of them are among the keys and have these contents.
        """
        places = np.searchsorted(keys, self.record_rowid[: self.used])
        if not (
            np.array_equal(keys[places], self.record_rowid[: self.used])
            and np.array_equal(contents[places], self.content[: self.used])
        ):
            return None
        # A missing row takes the values of the one before it, so that what ascends still does.
        before = np.zeros(len(keys), np.intp)
        before[places] = np.arange(self.used)
        spread = Columns(len(keys))
        spread.take(self, np.maximum.accumulate(before))
        spread.record_rowid[:], spread.content[:] = keys, contents
        missing = np.ones(len(keys), np.bool_)
        missing[places] = False
        spread.removed[missing] = 0
        spread.dead += int(np.count_nonzero(missing))
        return spread

    def remove(self, keys: RowIds, seq: int) -> int:
        """Marks those of the keys that are here; returns how many were."""
        rows = self.rows_of_records(keys, self.used)
        rows = rows[self.removed[rows] == NEVER]
        self.removed[rows] = seq
        self.dead += len(rows)
        return len(rows)

    def rows_of_records(self, keys: RowIds, rows: int) -> Positions:
        """The rows, of the first `rows`, whose record rowid is among the keys."""
        found = np.searchsorted(self.record_rowid[:rows], keys)
        inside = found < rows
        found, keys = found[inside], keys[inside]
        matching: Positions = found[self.record_rowid[found] == keys]
        return matching

    def rows_of_images(self, images: RowIds, rows: int) -> Positions:
        """The rows, of the first `rows`, that belong to one of the images, ascending."""
        order = self.by_image(rows)
        column = self.image_rowid[:rows] if order is None else self.image_rowid[order]
        images = np.unique(images)
        first = np.searchsorted(column, images, side="left")
        counts = np.searchsorted(column, images, side="right") - first
        # Each image's run of rows, one behind the other.
        runs = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        found: Positions = runs + np.arange(counts.sum())
        if order is not None:
            chosen: Positions = order[found]
            found = np.sort(chosen[chosen < rows])
        return found

    def by_image(self, rows: int) -> Positions | None:
        """At least the first `rows` rows in ascending order of their images; None where they lie so."""
        if self._ascending:
            return None
        known = self._by_image
        if known is None or known[0] < rows:
            used = self.used
            known = self._by_image = (used, np.argsort(self.image_rowid[:used], kind="stable"))
        return known[1]

    def _note_order(self, place: slice) -> None:
        image = self.image_rowid[max(0, place.start - 1) : place.stop]
        self._ascending = self._ascending and bool((image[1:] >= image[:-1]).all())

    @property
    def nbytes(self) -> int:
        """Memory that is taken up by written rows, in bytes."""
        return self.used * sum(np.dtype(dtype).itemsize for dtype in _COLUMNS.values())


def contents(vectors: Vectors) -> Contents:
    """One number a vector, from the bits of its components: equal vectors have equal numbers."""
    words = np.ascontiguousarray(vectors).view(np.uint32 if vectors.shape[1] % 2 else np.uint64)
    sums: Contents = words.astype(np.uint64, copy=False) @ _multipliers(words.shape[1])
    return sums


@lru_cache(maxsize=64)
def _multipliers(count: int) -> Contents:
    numbers = np.random.default_rng(_SEED).integers(0, 1 << 63, count, np.uint64)
    return (numbers << np.uint64(1)) | np.uint64(1)
