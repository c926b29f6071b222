"""Reads all live rows of the record store as arrays, from which the indexes are built at start.

Records and vectors are read table by table and joined here: SQLite's join costs more than both reads. Work
per row is limited to two tuples, and one batch is read while the one before is used.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.faiss_compat import to_single
from services.searcher.embedded.rows import RowIds, Rows
from services.searcher.embedded.store import faults
from services.searcher.embedded.store.faults import DamagedRowError
from services.searcher.embedded.store.reads import collections
from services.searcher.types import Vectors

T = TypeVar("T")

_BATCH = 8192
_BATCH_BYTES = 8 << 20
_UNIT = 0.02  # half precision and the rounding of 65,536 components stay far below

# The values that `faults.of_indexed` covers, in its layout, and their checksum; -1 in rows without one.
_RECORD = np.dtype(
    [
        ("collection", "<i8"),
        ("key", "<i8"),
        ("image", "<i8"),
        ("level", "<i8"),
        ("area", "<i8"),
        ("predicted_iou", "<f8"),
        ("stability_score", "<f8"),
        ("added", "<i8"),
        ("checksum", "<i8"),
    ]
)
_COLUMNS = f"{', '.join(_RECORD.names[:-1] if _RECORD.names else ())}, COALESCE(checksum, -1)"


def live_rows(connection: sqlite3.Connection) -> Iterator[tuple[int, Rows, RowIds]]:
    """Collection, rows, and the writes that added them; each collection's in ascending order of rowid.

    Raises:
        DamagedRowError: A row is not what was written, a record lacks its image or vector, or a vector's
            length or norm is wrong.
    """
    dimensions = {number: spec.model.dimension for number, spec, _ in collections(connection)}
    created = _Created(connection)
    rows = min(_BATCH, max(_BATCH_BYTES // (2 * max(dimensions.values(), default=1)), 1))
    for records, stored in _ahead(_batches(connection, rows)):
        for number in np.unique(records["collection"]).tolist():
            if number not in dimensions:
                continue  # dropped, not yet vacuumed
            here = np.flatnonzero(records["collection"] == number)
            mine = records[here]
            blobs = stored if len(here) == len(records) else [stored[i] for i in here]
            found = Rows(
                record_rowid=np.ascontiguousarray(mine["key"]),
                image_rowid=np.ascontiguousarray(mine["image"]),
                level=mine["level"].astype(np.uint8),
                area=mine["area"],
                predicted_iou=mine["predicted_iou"].astype(np.float32),
                stability_score=mine["stability_score"].astype(np.float32),
                created_ms=created.of(mine["image"]),
                vectors=_unit_vectors(mine["key"], blobs, dimensions[number]),
            )
            yield number, found, np.ascontiguousarray(mine["added"])


def _batches(connection: sqlite3.Connection, rows: int) -> Iterator[tuple[NDArray[np.void], list[bytes]]]:
    """Live records in ascending order of rowid, in batches, with their stored vectors."""
    cursor = connection.execute(
        f"SELECT {_COLUMNS} FROM record WHERE removed IS NULL ORDER BY key"  # noqa: S608
    )
    while batch := cursor.fetchmany(rows):
        records = np.fromiter(batch, _RECORD, len(batch))
        _check(records)
        yield records, _blobs(connection, records["key"])


def _check(records: NDArray[np.void]) -> None:
    """Compares rows with their checksums.

    Raises:
        DamagedRowError: One is not what was written.
    """
    stored = records["checksum"]
    actual = np.array(faults.of_indexed_rows(records.tobytes(), _RECORD.itemsize))
    damaged = (stored != actual) & (stored != -1)
    if damaged.any():
        record_rowid = int(records["key"][int(np.argmax(damaged))])
        raise DamagedRowError(f"the checksum of record {record_rowid} does not match")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items; while one is used, the next is read on another thread."""
    end = object()
    with ThreadPoolExecutor(1) as background:
        following = background.submit(next, items, end)
        while (item := following.result()) is not end:
            following = background.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not `end`


class _Created:
    """When images were first written, by rowid."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("SELECT ordinal, created_ms FROM image WHERE removed IS NULL")
        pairs = np.fromiter(found, np.dtype([("ordinal", np.int64), ("created_ms", np.int64)]))
        pairs.sort(order="ordinal")
        self._image_rowids = np.ascontiguousarray(pairs["ordinal"])
        self._times = np.ascontiguousarray(pairs["created_ms"])

    def of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of images, milliseconds since 1970."""
        places = np.searchsorted(self._image_rowids, images)
        inside = places < len(self._image_rowids)
        inside[inside] = self._image_rowids[places[inside]] == images[inside]
        if not inside.all():
            raise DamagedRowError(f"image {int(images[~inside][0])} of a record is missing")
        return self._times[places]


def _blobs(connection: sqlite3.Connection, record_rowids: RowIds) -> list[bytes]:
    """Stored vectors of ascending record rowids, in their order."""
    found = connection.execute(
        "SELECT key, value, checksum FROM vector WHERE key BETWEEN ? AND ? ORDER BY key",
        (int(record_rowids[0]), int(record_rowids[-1])),
    ).fetchall()
    if len(found) != len(record_rowids) or [row[0] for row in found] != record_rowids.tolist():
        by_key = {row[0]: row for row in found}  # those of removed records lie between
        try:
            found = [by_key[record_rowid] for record_rowid in record_rowids.tolist()]
        except KeyError as error:
            raise DamagedRowError(f"record {error.args[0]} has no vector") from error
    for record_rowid, value, checksum in found:
        if checksum is not None and checksum != faults.of_vector(record_rowid, value):
            raise DamagedRowError(f"the checksum of the vector of record {record_rowid} does not match")
    return [value for _, value, _ in found]


def _unit_vectors(record_rowids: RowIds, blobs: list[bytes], dimension: int) -> Vectors:
    if set(map(len, blobs)) != {2 * dimension}:
        wrong = next(
            record_rowid
            for record_rowid, blob in zip(record_rowids.tolist(), blobs, strict=True)
            if len(blob) != 2 * dimension
        )
        raise DamagedRowError(f"the vector of record {wrong} has the wrong length")
    vectors = to_single(np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), dimension))
    unit = np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1.0) < _UNIT  # NaN fails too
    if not unit.all():
        raise DamagedRowError(
            f"the vector of record {int(record_rowids[int(np.argmin(unit))])} is not of unit length"
        )
    return vectors
