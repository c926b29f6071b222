"""Filters as masks over the columns of a segment."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from regionsearch.lru import LruCache
from services.searcher.embedded.index.columns import Columns, Mask
from services.searcher.embedded.index.segments import IndexSegment, View
from services.searcher.embedded.index.terms import AnyTerm
from services.searcher.embedded.rows import RowIds
from services.searcher.types import NO_FILTER, Filter, Level


@dataclass(frozen=True, slots=True)
class Selected:
    """The `matching` rows of a segment that pass: of its first `rows` those of the mask, all without one."""

    segment: IndexSegment
    rows: int
    mask: Mask | None
    matching: int


@dataclass(frozen=True, slots=True, eq=False)
class CompiledFilter:
    """A filter, looked up in the record store, that holds for the state after write `seq`.

    Attributes:
        seq: The write.
        level: Only records of this level; None is both.
        filter: The numeric conditions are read from here.
        images: Allowed images; None allows all.
        without_images: Excluded images.
        keys: Allowed records; None allows all.
        without: Excluded records.
        terms: Tags and attributes; each must hold.
    """

    seq: int
    level: Level | None = None
    filter: Filter = NO_FILTER
    images: RowIds | None = None
    without_images: RowIds | None = None
    keys: RowIds | None = None
    without: RowIds | None = None
    terms: tuple[AnyTerm, ...] = ()
    _masks: weakref.WeakKeyDictionary[Columns, tuple[int, Mask | None, int]] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def select(self, views: Sequence[View]) -> list[Selected]:
        """The rows that pass, of the segments that have any. What was evaluated once is kept."""
        selected: list[Selected] = []
        for view in views:
            columns = view.segment.columns
            known = self._masks.get(columns)
            if known is None:
                rows = self.visible(columns, view.rows)
                mask = self.mask(columns, rows)
                known = (rows, mask, rows if mask is None else int(np.count_nonzero(mask)))
                known = self._masks.setdefault(columns, known)
            if known[2]:
                selected.append(Selected(view.segment, *known))
        return selected

    def visible(self, columns: Columns, rows: int) -> int:
        """Number of the first `rows` rows that were written up to `seq`."""
        if rows == 0 or columns.added[rows - 1] <= self.seq:
            return rows
        return int(np.searchsorted(columns.added[:rows], self.seq, side="right"))

    def mask(self, columns: Columns, rows: int) -> Mask | None:
        """Which of the first `rows` rows are wanted; None when all of them are."""
        masks: list[Mask] = []
        wanted = self.filter
        if columns.dead:
            masks.append(columns.removed[:rows] > self.seq)
        if self.level is not None:
            masks.append(columns.level[:rows] == self.level)
        for keys, owners, allowed in (
            (self.keys, columns.rows_of_records, True),
            (self.without, columns.rows_of_records, False),
            (self.images, columns.rows_of_images, True),
            (self.without_images, columns.rows_of_images, False),
        ):
            if keys is not None:
                named = np.full(rows, not allowed)
                named[owners(keys, rows)] = allowed
                masks.append(named)
        bounds = (
            (np.greater_equal, columns.area, wanted.min_area),
            (np.less_equal, columns.area, wanted.max_area),
            (np.greater_equal, columns.predicted_iou, wanted.min_predicted_iou),
            (np.greater_equal, columns.stability_score, wanted.min_stability_score),
            (np.greater_equal, columns.created_ms, wanted.created_after_ms),
            (np.less, columns.created_ms, wanted.created_before_ms),
        )
        masks += [compare(column[:rows], bound) for compare, column, bound in bounds if bound is not None]
        masks += [terms.mask(columns, rows) for terms in self.terms]
        if not masks:
            return None
        mask = masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)
        return None if mask.all() else mask


class FilterCache:
    """The conditions of the last filters of a collection. Safe to use from several threads.

    Searches of one moment that ask with equal filters get one object, and so share the work of evaluating it
    and one pass over the vectors.
    """

    def __init__(self, entries: int = 16) -> None:
        self._kept: LruCache[Hashable, CompiledFilter] = LruCache(entries)
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], CompiledFilter]) -> CompiledFilter:
        """The conditions of a key, which names filter, level and state; made where they are not kept."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        made = make()  # without the lock: it reads the record store
        with self._lock:
            found = self._kept.get(key) or made
            self._kept.put(key, found)
        return found
