"""Filters as masks over the columns of a segment."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded import reads
from services.searcher.embedded.rows import Keys
from services.searcher.embedded.segments import Columns, Mask
from services.searcher.types import NO_FILTER, Filter, Level


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """One wanted attribute: a record's own value counts, or else its image's."""

    images: Keys
    records: Keys
    other_records: Keys

    def mask(self, columns: Columns, rows: int) -> Mask:
        """Which of the first `rows` rows have it."""
        mask = np.isin(columns.image[:rows], self.images)
        mask[located(columns, rows, self.other_records)] = False
        mask[located(columns, rows, self.records)] = True
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """A filter, looked up in the record store, that holds for the state after write `seq`.

    Attributes:
        seq: The write.
        level: Only records of this level; None is both.
        filter: The numeric conditions are read from here.
        images: Allowed images, indexed by ordinal; None allows all.
        keys: Allowed records; None allows all.
        without: Excluded records.
        attributes: Wanted attributes.
    """

    seq: int
    level: Level | None = None
    filter: Filter = NO_FILTER
    images: NDArray[np.bool_] | None = None
    keys: Keys | None = None
    without: Keys | None = None
    attributes: tuple[AttributeRule, ...] = ()

    def within(self, images: Keys, size: int) -> Conditions:
        """The same, and only records of some images; `size` is one more than the highest ordinal."""
        return replace(self, images=_restrict(self.images, size, images, keep=True))

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
        if self.keys is not None:
            only = np.zeros(rows, np.bool_)
            only[located(columns, rows, self.keys)] = True
            masks.append(only)
        if self.without is not None:
            others = np.ones(rows, np.bool_)
            others[located(columns, rows, self.without)] = False
            masks.append(others)
        if self.images is not None:
            masks.append(self.images[columns.image[:rows]])
        bounds = (
            (np.greater_equal, columns.area, wanted.min_area),
            (np.less_equal, columns.area, wanted.max_area),
            (np.greater_equal, columns.predicted_iou, wanted.min_predicted_iou),
            (np.greater_equal, columns.stability_score, wanted.min_stability_score),
            (np.greater_equal, columns.created_ms, wanted.created_after_ms),
            (np.less, columns.created_ms, wanted.created_before_ms),
        )
        masks += [compare(column[:rows], bound) for compare, column, bound in bounds if bound is not None]
        masks += [rule.mask(columns, rows) for rule in self.attributes]
        if not masks:
            return None
        mask = masks[0]
        for other in masks[1:]:
            mask &= other
        return None if mask.all() else mask


class ConditionsCache:
    """The conditions of the last filters of a collection. Safe to use from several threads.

    Searches of one moment that ask with equal filters get one object, and so share the work of evaluating it
    and one pass over the vectors.
    """

    def __init__(self, entries: int = 16) -> None:
        self._most = entries
        self._kept: OrderedDict[Hashable, Conditions] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Conditions]) -> Conditions:
        """The conditions of a key, which names filter, level and state; made where they are not kept."""
        with self._lock:
            kept = self._kept.get(key)
        made = make() if kept is None else kept  # without the lock: it reads the record store
        with self._lock:
            found = self._kept.setdefault(key, made)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return found


def compile_filter(
    connection: sqlite3.Connection,
    collection: int,
    wanted: Filter,
    level: Level | None,
    seq: int,
    images: int,
) -> Conditions:
    """Looks a filter's names up in the record store.

    Args:
        connection: A reading connection whose view is not older than `seq`.
        collection: The collection's internal number.
        wanted: The filter.
        level: Only records of this level; None is both.
        seq: The write whose state is looked at.
        images: One more than the highest image ordinal in the index.
    """
    allowed: NDArray[np.bool_] | None = None
    keys = without = None
    if wanted.image_ids:
        found = reads.every_version(connection, "image", collection, wanted.image_ids, seq)
        allowed = _restrict(allowed, images, found, keep=True)
    if wanted.exclude_image_ids:
        found = reads.every_version(connection, "image", collection, wanted.exclude_image_ids, seq)
        allowed = _restrict(allowed, images, found, keep=False)
    if wanted.tags:
        allowed = _restrict(
            allowed, images, reads.tagged_images(connection, collection, wanted.tags), keep=True
        )
    if wanted.exclude_tags:
        found = reads.tagged_images(connection, collection, wanted.exclude_tags)
        allowed = _restrict(allowed, images, found, keep=False)
    if wanted.record_ids:
        keys = reads.every_version(connection, "record", collection, wanted.record_ids, seq)
    if wanted.exclude_record_ids:
        without = reads.every_version(connection, "record", collection, wanted.exclude_record_ids, seq)
    rules = tuple(
        AttributeRule(*reads.attribute_owners(connection, collection, name, value))
        for name, value in wanted.attributes
    )
    return Conditions(seq, level, wanted, allowed, keys, without, rules)


def located(columns: Columns, rows: int, keys: Keys) -> NDArray[np.intp]:
    """Rows, among the first `rows`, of those of the keys that are here."""
    found = np.searchsorted(columns.key[:rows], keys)
    found = found[found < rows] if len(keys) else found[:0]
    hit = np.isin(columns.key[found], keys)
    return found[hit]


def _restrict(allowed: NDArray[np.bool_] | None, size: int, found: Keys, *, keep: bool) -> NDArray[np.bool_]:
    """Keeps only, or takes away, the found ordinals."""
    named = np.zeros(size, np.bool_)
    named[found[found < size]] = True
    mask = named if keep else ~named
    if allowed is not None:
        mask[: len(allowed)] &= allowed
        mask[len(allowed) :] = False
    return mask
