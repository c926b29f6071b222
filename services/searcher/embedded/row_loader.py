"""All live rows of the record store as arrays, for the indexes that are made of them at start.

Records and vectors are read table by table and joined here: SQLite's join costs more than both reads. Apart
from two tuples a row nothing is done row by row, and one batch is read while the one before is used.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.searcher.embedded.index.faiss_compat import widened
from services.searcher.embedded.store import checksums
from services.searcher.embedded.store.checksums import DamagedRowError
from services.searcher.embedded.store.reads import collections
from services.searcher.embedded.store.rows import Keys, Rows
from services.searcher.types import Vectors

T = TypeVar("T")

_BATCH = 8192
_BATCH_BYTES = 8 << 20
_UNIT = 0.02  # half precision and the rounding of 65,536 components stay far below

_RECORD = np.dtype(
    [
        ("collection", np.int64),
        ("key", np.int64),
        ("image", np.int64),
        ("level", np.uint8),
        ("area", np.int64),
        ("predicted_iou", np.float32),
        ("stability_score", np.float32),
        ("added", np.int64),
    ]
)
_CHECKED = "collection, key, image, level, area, predicted_iou, stability_score, added, checksum"


def live_rows(connection: sqlite3.Connection) -> Iterator[tuple[int, Rows, Keys]]:
    """Collection, rows, and the writes that added them; each collection's in ascending order of key.

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
                continue  # dropped, not yet purged
            here = np.flatnonzero(records["collection"] == number)
            mine = records[here]
            blobs = stored if len(here) == len(records) else [stored[i] for i in here]
            found = Rows(
                key=np.ascontiguousarray(mine["key"]),
                image=np.ascontiguousarray(mine["image"]),
                level=mine["level"],
                area=mine["area"],
                predicted_iou=mine["predicted_iou"],
                stability_score=mine["stability_score"],
                created_ms=created.of(mine["image"]),
                vectors=_unit_vectors(mine["key"], blobs, dimensions[number]),
            )
            yield number, found, np.ascontiguousarray(mine["added"])


def _batches(connection: sqlite3.Connection, rows: int) -> Iterator[tuple[NDArray[np.void], list[bytes]]]:
    """Live records in ascending order of key, so many at once, and their stored vectors."""
    cursor = connection.execute(
        f"SELECT {_CHECKED} FROM record WHERE removed IS NULL ORDER BY key"  # noqa: S608
    )
    while batch := cursor.fetchmany(rows):
        records = np.fromiter(map(_checked, batch), _RECORD, len(batch))
        yield records, _blobs(connection, records["key"])


def _checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `_RECORD` takes of a row of the columns `_CHECKED`."""
    *values, checksum = row
    if checksum is not None and checksum != checksums.of_indexed(values):
        raise DamagedRowError(f"the checksum of record {row[1]} does not match")
    return tuple(values)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; while one is being used, the next one is made on another thread."""
    end = object()
    with ThreadPoolExecutor(1) as beside:
        following = beside.submit(next, items, end)
        while (item := following.result()) is not end:
            following = beside.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not `end`


class _Created:
    """When images were first written, by ordinal."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("SELECT ordinal, created_ms FROM image WHERE removed IS NULL")
        pairs = np.fromiter(found, np.dtype([("ordinal", np.int64), ("created_ms", np.int64)]))
        pairs.sort(order="ordinal")
        self._ordinals = np.ascontiguousarray(pairs["ordinal"])
        self._times = np.ascontiguousarray(pairs["created_ms"])

    def of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of images, milliseconds since 1970."""
        places = np.searchsorted(self._ordinals, images)
        inside = places < len(self._ordinals)
        inside[inside] = self._ordinals[places[inside]] == images[inside]
        if not inside.all():
            raise DamagedRowError(f"image {int(images[~inside][0])} of a record is missing")
        return self._times[places]


def _blobs(connection: sqlite3.Connection, keys: Keys) -> list[bytes]:
    """Stored vectors of ascending keys, in their order."""
    found = connection.execute(
        "SELECT key, value, checksum FROM vector WHERE key BETWEEN ? AND ? ORDER BY key",
        (int(keys[0]), int(keys[-1])),
    ).fetchall()
    if len(found) != len(keys) or [row[0] for row in found] != keys.tolist():
        by_key = {row[0]: row for row in found}  # those of removed records lie between
        try:
            found = [by_key[key] for key in keys.tolist()]
        except KeyError as error:
            raise DamagedRowError(f"record {error.args[0]} has no vector") from error
    for key, value, checksum in found:
        if checksum is not None and checksum != checksums.of_vector(key, value):
            raise DamagedRowError(f"the checksum of the vector of record {key} does not match")
    return [value for _, value, _ in found]


def _unit_vectors(keys: Keys, blobs: list[bytes], dimension: int) -> Vectors:
    if set(map(len, blobs)) != {2 * dimension}:
        wrong = next(
            key for key, blob in zip(keys.tolist(), blobs, strict=True) if len(blob) != 2 * dimension
        )
        raise DamagedRowError(f"the vector of record {wrong} has the wrong length")
    vectors = widened(np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), dimension))
    unit = np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1.0) < _UNIT  # NaN fails too
    if not unit.all():
        raise DamagedRowError(f"the vector of record {int(keys[int(np.argmin(unit))])} is not of unit length")
    return vectors
