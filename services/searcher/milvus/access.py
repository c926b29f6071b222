"""Reading from Milvus, and its errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pymilvus import MilvusClient, MilvusException

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.milvus.tables import Row, listed

_BATCH = 4000
_VALUES = 1000  # of one expression


def some_rows(
    client: MilvusClient, table: str, term: str, fields: Sequence[str], limit: int | None = None
) -> list[Row]:
    """Few rows, read in one call; any of them where there are more than `limit`."""
    bounds = {} if limit is None else {"limit": limit}
    return list(
        client.query(table, filter=term, output_fields=list(fields), consistency_level="Strong", **bounds)
    )


def every_row(client: MilvusClient, table: str, term: str, fields: Sequence[str]) -> Iterator[Row]:
    """All rows that an expression names, however many they are; read as they are taken."""
    iterator = client.query_iterator(
        table, batch_size=_BATCH, filter=term, output_fields=list(fields), consistency_level="Strong"
    )
    try:
        while batch := iterator.next():
            yield from batch
    finally:
        iterator.close()


def rows_of(
    client: MilvusClient,
    table: str,
    field: str,
    values: Sequence[str],
    fields: Sequence[str],
    also: str = "",
) -> Iterator[Row]:
    """All rows whose field has one of the values, read as they are taken; `also` must hold too."""
    for start in range(0, len(values), _VALUES):
        term = listed(field, values[start : start + _VALUES])
        yield from every_row(client, table, f"({term}) and ({also})" if also else term, fields)


def count_rows(client: MilvusClient, table: str, term: str = "") -> int:
    """Number of rows in a table that an expression names; all by default."""
    return int(some_rows(client, table, term, ["count(*)"])[0]["count(*)"])


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns Milvus' errors into ours.

    Raises:
        RegionSearchError: UNAVAILABLE when Milvus cannot be reached, INTERNAL for anything else.
    """
    try:
        yield
    except MilvusException as error:
        text = str(error.message)
        if any(sign in text.lower() for sign in ("unavailable", "connect", "deadline", "timeout")):
            raise RegionSearchError(
                Kind.UNAVAILABLE, f"Milvus does not answer ({text}): check milvus.uri", retry_after_s=1.0
            ) from error
        raise RegionSearchError(Kind.INTERNAL, f"Milvus: {text}") from error
