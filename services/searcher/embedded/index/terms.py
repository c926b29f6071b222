"""Tags and attributes that filters ask for: who has them, kept up to date by reading what is new.

What a stored row says never changes, and ids only grow: so a term that was looked up once is right for all
rows up to then, and only later images and records are read after a write. Its mask over a segment grows
likewise. Changes of an image in place give the collection another `revision`, which forgets everything.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from services.searcher.embedded.index.segments import Columns, Mask
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.reads import Newest
from services.searcher.embedded.store.rows import Keys

_KEPT_BYTES = 256 << 20


def _nobody() -> Keys:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Owners:
    """Who has a term, each in ascending order: images, records of their own, records with another value."""

    images: Keys = field(default_factory=_nobody)
    records: Keys = field(default_factory=_nobody)
    others: Keys = field(default_factory=_nobody)

    def mask(self, image: Keys, key: Keys) -> Mask:
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
    """One tag list or attribute, for all rows up to `newest`. Its masks are shared by all searches.

    Attributes:
        owners: Who has it.
        newest: The newest image and record that were looked at.
    """

    owners: Owners = field(default_factory=Owners)
    newest: Newest = field(default_factory=Newest)
    _masks: weakref.WeakKeyDictionary[Columns, Mask] = field(default_factory=weakref.WeakKeyDictionary)

    def mask(self, columns: Columns, rows: int) -> Mask:
        """Which of the first `rows` rows have it. Only rows that were not asked for before are evaluated."""
        known = self._masks.get(columns)
        done = 0 if known is None else len(known)
        if done < rows:
            more = self.owners.mask(columns.image[done:rows], columns.key[done:rows])
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


class Terms:
    """The terms that the last filters of a collection asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._revision = 0
        self._kept: OrderedDict[tuple[str, ...], Term] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, revision: int) -> Terms:
        """The same terms; all are forgotten where images have been changed in place since."""
        with self._lock:
            if revision != self._revision:
                self._kept.clear()
                self._revision = revision
        return self

    def tagged(self, connection: sqlite3.Connection, collection: int, tags: tuple[str, ...]) -> Term:
        """Images with at least one of the tags."""

        def look_up(since: Newest) -> Owners:
            return Owners(reads.tagged_images(connection, collection, tags, since.image))

        return self._get(connection, ("tags", *sorted(set(tags))), look_up)

    def attribute(self, connection: sqlite3.Connection, collection: int, name: str, value: str) -> Term:
        """Records that have an attribute, or whose image has it while they have no own one of that name."""

        def look_up(since: Newest) -> Owners:
            return Owners(*reads.attribute_owners(connection, collection, name, value, since))

        return self._get(connection, ("attribute", name, value), look_up)

    def _get(
        self, connection: sqlite3.Connection, key: tuple[str, ...], look_up: Callable[[Newest], Owners]
    ) -> Term:
        newest = reads.newest(connection)  # opens the transaction's view, which what follows reads too
        with self._lock:
            term = self._kept.setdefault(key, Term())
            self._kept.move_to_end(key)
            since, owners = term.newest, term.owners
        if since.image < newest.image or since.record < newest.record:
            owners = owners.joined(look_up(since))
            with self._lock:
                # Another thread may have been quicker; whoever has seen more wins, both are right.
                if term.newest.record <= newest.record and term.newest.image <= newest.image:
                    term.owners, term.newest = owners, newest
        return term

    def release_pages(self) -> None:
        """Forgets the terms that were asked for longest ago, where all of them take too much memory."""
        with self._lock:
            total = sum(term.nbytes for term in self._kept.values())
            while total > _KEPT_BYTES and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].nbytes


def _member(ordered: Keys, values: Keys) -> Mask:
    """Which of the values are among ascending ones."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    places = np.searchsorted(ordered, values)
    places[places == len(ordered)] = 0
    return np.asarray(ordered[places] == values)
