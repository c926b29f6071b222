"""Calls to Milvus: each ends in time, says how fresh an answer has to be, and fails with our errors."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import grpc
from pymilvus import MilvusClient, MilvusException

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.bounded_executor import NEVER_CANCELLED, CancellationToken

_BATCH = 4000  # rows of one answer; more are read by an iterator
_VALUES = 1000  # of one expression

Result = TypeVar("Result")
Row = dict[str, Any]
Freshness = dict[str, Any]
STRONG: Freshness = {"consistency_level": "Strong"}
"""Everything that any searcher has written before; waits for Milvus' time tick, about 200 ms."""
EVENTUAL: Freshness = {"consistency_level": "Eventually"}
"""What Milvus has in memory, without any wait."""

_REFUSED = "Milvus refuses milvus.token"
_BY_STATUS: dict[object, tuple[Kind, str, float | None]] = {
    grpc.StatusCode.UNAVAILABLE: (Kind.UNAVAILABLE, "Milvus cannot be reached: check milvus.uri", 1.0),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        Kind.UNAVAILABLE, "Milvus did not answer in time (milvus.timeout_s)", 1.0,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Kind.OVERLOADED, "Milvus is overloaded", 1.0),
    grpc.StatusCode.PERMISSION_DENIED: (Kind.FAILED_PRECONDITION, _REFUSED, None),
    grpc.StatusCode.UNAUTHENTICATED: (Kind.FAILED_PRECONDITION, _REFUSED, None),
}  # fmt: skip
# Milvus' own codes (pkg/util/merr). A collection that is not found is `TableGoneError`.
_BY_CODE: dict[object, tuple[Kind, str, float | None]] = {
    **dict.fromkeys(
        (2, 10, 11, 101, 103, 201, 202, 500, 501, 502, 503, 600, 601, 602, 901, 10001),
        (Kind.UNAVAILABLE, "Milvus is not ready", 1.0),
    ),
    **dict.fromkeys((3, 4, 8), (Kind.OVERLOADED, "Milvus is overloaded", 1.0)),
    **dict.fromkeys((7, 9), (Kind.STORAGE_FULL, "Milvus refuses writes, a quota or its disk is full", None)),
    **dict.fromkeys((1400, 1401), (Kind.FAILED_PRECONDITION, _REFUSED, None)),
}
_NOT_FOUND = 100

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs a traceback of every error that it raises


class TableGoneError(RegionSearchError):
    """A Milvus collection is not there: its collection was deleted, perhaps by another searcher."""

    def __init__(self, message: str) -> None:
        super().__init__(Kind.NOT_FOUND, message, field="collection")


class Access:
    """Calls to Milvus on behalf of one caller.

    Args:
        client: The connection.
        timeout_s: Longest time for one call.
        pool: Threads for concurrent calls; none of these may make others wait.
        cancellation: Calls end when it has left; none begins after that.
    """

    def __init__(
        self,
        client: MilvusClient,
        timeout_s: float,
        pool: ThreadPoolExecutor,
        cancellation: CancellationToken = NEVER_CANCELLED,
    ) -> None:
        self.client = client
        self._pool = pool
        self.timeout_s = timeout_s
        self._cancellation = cancellation

    def with_cancellation(self, cancellation: CancellationToken) -> Access:
        """The same connection, within the time that the caller has."""
        return Access(self.client, self.timeout_s, self._pool, cancellation)

    def at_once(self, *calls: Callable[[], Any]) -> list[Any]:
        """The results of calls that are made at the same time; the first one runs in this thread."""
        others = [self._pool.submit(call) for call in calls[1:]]
        try:
            first = [call() for call in calls[:1]]
        finally:
            wait(others)  # an error of one leaves none of them running
        return first + [other.result() for other in others]

    def call(self, method: Callable[..., Result], *args: object, **options: object) -> Result:
        """Calls a method of the client.

        Raises:
            RegionSearchError: See `explained`; CANCELLED or DEADLINE_EXCEEDED when the caller has left.
        """
        self._cancellation.check()
        remaining = self._cancellation.remaining_s()
        timeout = self.timeout_s if remaining is None else min(self.timeout_s, remaining)
        try:
            with explained():
                return method(*args, timeout=timeout, **options)
        except RegionSearchError as error:
            raise (self._cancellation.refusal() or error) from error

    def query(
        self, table: str, term: str, fields: Sequence[str], freshness: Freshness, limit: int | None = None
    ) -> list[Row]:
        """Few rows, read in one call; any of them where there are more than `limit`."""
        bounds = {} if limit is None else {"limit": limit}
        return list(
            self.call(
                self.client.query, table, filter=term, output_fields=list(fields), **bounds, **freshness
            )
        )

    def first(
        self, table: str, term: str, fields: Sequence[str], limit: int, freshness: Freshness
    ) -> list[Row]:
        """The first rows in the order of the primary key."""
        iterator = self.call(
            self.client.query_iterator, table, batch_size=limit, filter=term, output_fields=list(fields),
            **freshness,
        )  # fmt: skip
        try:
            with explained():
                return list(iterator.next())
        finally:
            iterator.close()

    def rows(self, table: str, term: str, fields: Sequence[str], freshness: Freshness) -> Iterator[Row]:
        """All rows that an expression selects; large numbers are read while they are consumed."""
        few = self.query(table, term, fields, freshness, limit=_BATCH)
        if len(few) < _BATCH:
            yield from few
            return
        iterator = self.call(
            self.client.query_iterator, table, batch_size=_BATCH, filter=term, output_fields=list(fields),
            **STRONG,
        )  # fmt: skip
        try:
            while True:
                self._cancellation.check()
                with explained():
                    batch = iterator.next()
                if not batch:
                    return
                yield from batch
        finally:
            iterator.close()

    def rows_of(
        self, table: str, field: str, values: Sequence[str], fields: Sequence[str], freshness: Freshness,
        also: str = "",
    ) -> Iterator[Row]:  # fmt: skip
        """All rows whose field has one of the values; `also` must hold too."""
        for start in range(0, len(values), _VALUES):
            term = listed(field, values[start : start + _VALUES])
            yield from self.rows(table, f"({term}) and ({also})" if also else term, fields, freshness)

    def count(self, table: str, freshness: Freshness, term: str = "") -> int:
        """Number of rows in a table that an expression names; all by default."""
        return int(self.query(table, term, ["count(*)"], freshness)[0]["count(*)"])

    def upsert(self, table: str, rows: Sequence[Row], batch: int) -> None:
        """Writes rows, `batch` in one call. All rows of a call become visible at once."""
        for start in range(0, len(rows), batch):
            self.call(self.client.upsert, table, list(rows[start : start + batch]), retry_on_rate_limit=False)

    def delete(self, table: str, ids: Sequence[str], batch: int) -> None:
        """Deletes rows by their primary keys, `batch` in one call."""
        for start in range(0, len(ids), batch):
            self.call(
                self.client.delete, table, ids=list(ids[start : start + batch]), retry_on_rate_limit=False
            )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns Milvus' errors into ours, by their codes.

    Raises:
        RegionSearchError: UNAVAILABLE when Milvus cannot be reached, is not ready or takes too long;
            OVERLOADED at its limits; STORAGE_FULL when it refuses writes; FAILED_PRECONDITION when it refuses
            the token; `TableGoneError`; INTERNAL for anything else.
    """
    try:
        yield
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise _ours(error) from error


def _ours(error: Exception) -> RegionSearchError:
    if isinstance(error, MilvusException):
        code, text = error.code, str(error.message)
        if code == _NOT_FOUND:
            return TableGoneError(f"Milvus: {text}")
        known = _BY_STATUS.get(code) or _BY_CODE.get(code)
        if known is None and error.retriable:
            known = _BY_CODE[2]
    elif isinstance(error, grpc.RpcError):
        known, text = _BY_STATUS.get(error.code()), str(error.details())
    else:
        known, text = _BY_STATUS[grpc.StatusCode.DEADLINE_EXCEEDED], str(error)
    kind, sentence, retry_after_s = known or (Kind.INTERNAL, "Milvus", None)
    return RegionSearchError(kind, f"{sentence}: {text}", retry_after_s=retry_after_s)


def listed(field: str, values: Iterable[object], *, inside: bool = True) -> str:
    """Field is, or is not, one of the values."""
    return f"{field} {'in' if inside else 'not in'} {json.dumps(list(values), ensure_ascii=False)}"
