"""Deletions: by ids in one write, by a filter in steps, between which other writes are committed."""

from __future__ import annotations

import sqlite3
from functools import partial

import numpy as np

from services.searcher.embedded.index.filters import Terms
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.queries.filter_compiler import compile_filter
from services.searcher.embedded.rows import Change, RowIds
from services.searcher.embedded.store import collection_rows, lookups, reads, writes
from services.searcher.embedded.store.disk_reserve import DiskReserve
from services.searcher.embedded.store.group_commit import GroupCommitter, Operation
from services.searcher.queries import Deletion, check_unchanged
from services.searcher.types import DeleteResult

_STEP_ROWS = 20_000  # some tenths of a second


def delete(
    collection: OpenCollection,
    name: str,
    deletion: Deletion,
    committer: GroupCommitter,
    reserve: DiskReserve,
) -> DeleteResult:
    """Deletes records and images; see `Engine.delete`.

    Args:
        collection: Where they are.
        name: The collection's name, which it must still have.
        deletion: What to delete.
        committer: Where the writes go.
        reserve: Disk space that deletions may use.
    """
    by_filter = deletion.filter is not None

    def matching(connection: sqlite3.Connection) -> tuple[RowIds, None]:
        assert deletion.filter is not None
        conditions = compile_filter(
            connection, collection.rowid, deletion.filter, None, committer.seq, Terms()
        )
        return collection.index.matching(conditions), None

    def step(keys: RowIds, named: Deletion, connection: sqlite3.Connection) -> tuple[DeleteResult, Change]:
        collection_rows.require_collection(connection, collection.rowid, name)
        if named.as_read is not None:
            read = named.as_read.image_id
            _, image = reads.images_by_id(connection, collection.rowid, [read]).get(read, (0, None))
            check_unchanged(named.as_read, image)
        keys = np.union1d(keys, lookups.rowids_of_records(connection, collection.rowid, named.record_ids))
        seq = collection_rows.next_seq(connection)
        images, change = writes.delete(
            connection, collection.rowid, named.image_ids, keys, seq, drop_empty_images=by_filter
        )
        return DeleteResult(seq, images, len(change.removed)), change

    def done(operation: Operation[DeleteResult]) -> DeleteResult:
        return reserve.deleting(lambda: committer.submit(operation))

    keys: RowIds = np.empty(0, np.int64)
    if by_filter:
        keys = committer.submit(matching, alone=True).result()
    result = done(partial(step, keys[:_STEP_ROWS], deletion))
    for start in range(_STEP_ROWS, len(keys), _STEP_ROWS):
        more = done(partial(step, keys[start : start + _STEP_ROWS], Deletion()))
        result = DeleteResult(
            more.seq, result.image_count + more.image_count, result.record_count + more.record_count
        )
    return result
