"""Cached tags and attributes of filters, kept up to date by reading only the rows that are new.

A stored row never changes, and rowids only grow: a term that was looked up once stays right for all rows up
to then, and after a write only later images and records are read. Its mask over a segment grows the same
way. Changing an image's tags or attributes in place gives the collection another `revision`, which drops all
terms.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from services.searcher.embedded.index.columns import Columns, Mask
from services.searcher.embedded.rows import HighestRowids, RowIds

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
