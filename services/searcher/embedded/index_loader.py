"""An index filled at start: row by row in order of keys, and by whole segments where a file has kept one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from services.searcher.embedded.index.compaction import CompactionInput
from services.searcher.embedded.index.index_files import SavedIndex
from services.searcher.embedded.index.segments import IndexSegment
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.store.rows import Keys, Rows

Restore = Callable[[SavedIndex, CompactionInput], IndexSegment | None]
"""Makes the segment that a file has kept, out of its rows; None if the two do not fit."""


class IndexLoader:
    """Fills one empty index.

    Args:
        index: The index.
        saved: What was kept of it, in order of keys.
        restore: Makes segments of that.
    """

    def __init__(self, index: VectorIndex, saved: Sequence[SavedIndex], restore: Restore) -> None:
        self._index = index
        self._saved = deque(saved)
        self._restore = restore
        self._before: int | None = None  # segments before the one that is being restored

    def add(self, rows: Rows, added: Keys) -> None:
        """Takes rows with keys above all earlier ones."""
        start = 0
        while start < len(rows):
            while self._saved and rows.key[start] > self._saved[0].keys[-1]:
                self._end()
            stop = len(rows)
            if self._saved:
                inside = rows.key[start] >= self._saved[0].keys[0]
                if inside and self._before is None:
                    self._begin()
                stop = (
                    int(np.searchsorted(rows.key, self._saved[0].keys[-1], side="right"))
                    if inside
                    else int(np.searchsorted(rows.key, self._saved[0].keys[0]))
                )
            self._index.add(rows.part(start, stop), added[start:stop])
            start = stop

    def finish(self) -> None:
        """No more rows come."""
        while self._saved:
            self._end()

    def _begin(self) -> None:
        self._index.seal()
        self._before = len(self._index.state.views)

    def _end(self) -> None:
        saved = self._saved.popleft()
        if self._before is None:
            return  # none of its rows is left
        self._index.seal()
        sources = [view.segment for view in self._index.state.views[self._before :]]
        self._before = None
        segment = self._restore(saved, CompactionInput(sources, 0))
        if segment is not None:
            self._index.replace(sources, [segment])
