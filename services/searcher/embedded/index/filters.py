"""Filters as masks over the columns of a segment, and the tags and attributes that they name.

A stored row never changes, and rowids only grow: a term that was looked up once stays right for all rows up
to then, and after a write only later images and records are read. Its mask over a segment grows the same
way. Changing an image's tags or attributes in place gives the collection another `revision`, which drops all
terms.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from regionsearch.lru import LruCache
from services.searcher.embedded.index.columns import Columns, Mask
from services.searcher.embedded.index.segments import IndexSegment, View
from services.searcher.embedded.rows import HighestRowids, RowIds
from services.searcher.queries import NO_FILTER, Filter
from services.searcher.types import Level

_KEPT_BYTES = 256 << 20


def _nobody() -> RowIds:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Owners:
    """The owners of a term as ascending rowids: images, records themselves, records with another value."""

    images: RowIds = field(default_factory=_nobody)
    records: RowIds = field(default_factory=_nobody)
    others: RowIds = field(default_factory=_nobody)

    def mask(self, image: RowIds, key: RowIds) -> Mask:
        """Which rows, given by image and key, have it: a record's own value counts, or else its image's."""
        mask = _member(self.images, image)
        mask &= ~_member(self.others, key)
        mask |= _member(self.records, key)
        return mask

    def joined(self, newer: Owners) -> Owners:
        """These and newer ones."""
        return Owners(
            *(
                np.union1d(mine, theirs) if len(theirs) else mine
                for mine, theirs in (
                    (self.images, newer.images),
                    (self.records, newer.records),
                    (self.others, newer.others),
                )
            )
        )

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.images.nbytes + self.records.nbytes + self.others.nbytes


@dataclass(slots=True, eq=False)
class Term:
    """Tags or a test of an attribute, for all rows up to `highest`. Its masks are shared by all searches.

    Attributes:
        owners: The images and records that have it.
        highest: The highest rowids that were read.
    """

    owners: Owners = field(default_factory=Owners)
    highest: HighestRowids = field(default_factory=HighestRowids)
    _masks: weakref.WeakKeyDictionary[Columns, Mask] = field(default_factory=weakref.WeakKeyDictionary)

    def mask(self, columns: Columns, rows: int) -> Mask:
        """Which of the first `rows` rows have it. Only rows that were not evaluated before are."""
        known = self._masks.get(columns)
        done = 0 if known is None else len(known)
        if done < rows:
            more = self.owners.mask(columns.image_rowid[done:rows], columns.record_rowid[done:rows])
            known = more if known is None else np.concatenate([known, more])
            self._masks[columns] = known
        assert known is not None or rows == 0
        return np.zeros(0, np.bool_) if known is None else known[:rows]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        alive = (reference() for reference in self._masks.keyrefs())
        masks = (self._masks.get(columns) for columns in alive if columns is not None)
        return self.owners.nbytes + sum(mask.nbytes for mask in masks if mask is not None)


@dataclass(frozen=True, slots=True)
class AnyTerm:
    """At least one of some terms, each of which may be negated; or none of them.

    Attributes:
        terms: Each with whether a record must not have it.
        negate: Whether none of them may hold.
    """

    terms: tuple[tuple[Term, bool], ...]
    negate: bool = False

    def mask(self, columns: Columns, rows: int) -> Mask:
        """Which of the first `rows` rows pass."""
        masks = [term.mask(columns, rows) ^ negate for term, negate in self.terms]
        passing: Mask = np.logical_or.reduce(masks) ^ self.negate
        return passing


class Terms:
    """The terms that a collection's recent filters asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._revision = 0
        self._kept: OrderedDict[tuple[Hashable, ...], Term] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, revision: int) -> Terms:
        """Returns these terms, emptied if images were changed in place since the last call."""
        with self._lock:
            if revision != self._revision:
                self._kept.clear()
                self._revision = revision
        return self

    def get(
        self, key: tuple[Hashable, ...], highest: HighestRowids, look_up: Callable[[HighestRowids], Owners]
    ) -> Term:
        """Returns a term that is right for all rows up to `highest`.

        Args:
            key: Names the term.
            highest: The highest rowids of the view that the caller reads.
            look_up: Reads the owners whose rowids are above the given ones, from that view.
        """
        with self._lock:
            term = self._kept.setdefault(key, Term())
            self._kept.move_to_end(key)
            since, owners = term.highest, term.owners
        if since.image < highest.image or since.record < highest.record:
            owners = owners.joined(look_up(since))
            with self._lock:
                # Another thread may have been faster; the one that has read more wins, both are right.
                if term.highest.record <= highest.record and term.highest.image <= highest.image:
                    term.owners, term.highest = owners, highest
        return term

    def evict(self) -> None:
        """Drops the least recently used terms while all of them together take too much memory."""
        with self._lock:
            total = sum(term.nbytes for term in self._kept.values())
            while total > _KEPT_BYTES and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].nbytes


def _member(ordered: RowIds, values: RowIds) -> Mask:
    """Which of the values are among ascending ones."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    places = np.searchsorted(ordered, values)
    places[places == len(ordered)] = 0
    return np.asarray(ordered[places] == values)


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
