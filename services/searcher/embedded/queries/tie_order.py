"""The order of hits with equal scores, by level and ids, without reading the ids of all that tie.

Where very many rows tie (blank images, frames of a film), the ids of blocks of rows are sorted once by the
record store and kept as an order of rows. A block then gives the few of its rows that can be on a page.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right

import numpy as np

from services.searcher.embedded.index.columns import Columns, Mask, Positions
from services.searcher.embedded.rows import RowIds
from services.searcher.embedded.store import lookups
from services.searcher.embedded.store.database import Database
from services.searcher.queries import Position

MANY = 1024
"""Rows above which the order of blocks is cheaper than the rows' ids."""

_BLOCK = 16_384
_LAST = np.iinfo(np.int32).max


class IdOrder:
    """Orders rows of one collection.

    Args:
        database: The record store.
        collection: The collection's rowid.
    """

    def __init__(self, database: Database, collection: int) -> None:
        self._database = database
        self._collection = collection

    def first(self, columns: Columns, rows: Positions, count: int, *, by_image: bool) -> Positions:
        """Rows among which are the first `count` of those given, or the first of the first `count` images."""
        kept: list[Positions] = [rows[:0]]
        for block in np.unique(rows // _BLOCK).tolist():
            here = rows[rows // _BLOCK == block]
            here = here[np.argsort(self._ranks(columns, block)[here % _BLOCK], kind="stable")]
            if by_image:
                _, leaders = np.unique(columns.image_rowid[here], return_index=True)
                here = here[np.sort(leaders)]
            kept.append(here[:count])
        return np.concatenate(kept)

    def behind(self, columns: Columns, rows: Positions, after: Position) -> Mask:
        """Which of the rows, whose scores are all equal to `after`'s, come after it."""
        place = (after.level, after.image_id, after.record_id)
        if len(rows) <= MANY:
            keys = columns.record_rowid[rows].tolist()
            with self._database.reading() as connection:
                ids = lookups.public_ids(connection, keys)
            places = zip(columns.level[rows].tolist(), keys, strict=True)
            return np.array([(level, *ids[key]) > place for level, key in places], np.bool_)
        behind = np.zeros(len(rows), np.bool_)
        for block in np.unique(rows // _BLOCK).tolist():
            here = rows // _BLOCK == block
            before = self._before(columns, block, place)
            behind[here] = self._ranks(columns, block)[rows[here] % _BLOCK] >= before
        return behind

    def _before(self, columns: Columns, block: int, place: tuple[int, str, str]) -> int:
        """The number of a block's rows that come at or before a place."""
        with self._database.reading() as connection:
            while True:
                order = self._order(columns, block)
                try:
                    return bisect_right(
                        order, place, key=lambda row: _place(connection, int(columns.record_rowid[row]))
                    )
                except LookupError:  # a row that is no longer visible has been vacuumed since
                    columns.orders.pop(block, None)

    def _ranks(self, columns: Columns, block: int) -> Positions:
        """Place of each of a block's rows in its order."""
        order = self._order(columns, block)
        ranks = np.full(_BLOCK, _LAST, np.intp)
        ranks[order - block * _BLOCK] = np.arange(len(order))
        return ranks

    def _order(self, columns: Columns, block: int) -> Positions:
        start = block * _BLOCK
        stop = min(columns.used, start + _BLOCK)
        known = columns.orders.get(block)
        if known is None or known[0] < stop:  # rows have come since
            with self._database.reading() as connection:
                keys = lookups.record_rowids_in_order(
                    connection,
                    self._collection,
                    int(columns.record_rowid[start]),
                    int(columns.record_rowid[stop - 1]),
                )
            known = columns.orders[block] = (stop, _rows_of(columns, start, stop, keys))
        return known[1]


def _place(connection: sqlite3.Connection, key: int) -> tuple[int, str, str]:
    place = lookups.place_in_order(connection, key)
    if place is None:
        raise LookupError(key)
    return place


def _rows_of(columns: Columns, start: int, stop: int, keys: RowIds) -> Positions:
    """Rows of keys in their order; keys of other segments are left out."""
    mine = columns.record_rowid[start:stop]
    places = np.searchsorted(mine, keys)
    known = (places < len(mine)) & (mine[np.minimum(places, len(mine) - 1)] == keys)
    found: Positions = start + places[known]
    return found
