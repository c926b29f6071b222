"""Reading from Milvus, and its errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pymilvus import MilvusClient, MilvusException

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.milvus import tables
from services.searcher.milvus.tables import Row, expression, listed
from services.searcher.types import NO_FILTER, Level, StoredImage

_BATCH = 4000


def some_rows(client: MilvusClient, table: str, term: str, fields: Sequence[str]) -> list[Row]:
    """Few rows, read in one call."""
    return list(client.query(table, filter=term, output_fields=list(fields), consistency_level="Strong"))


def every_row(client: MilvusClient, table: str, term: str, fields: Sequence[str]) -> list[Row]:
    """All rows that an expression names, however many they are."""
    iterator = client.query_iterator(
        table, batch_size=_BATCH, filter=term, output_fields=list(fields), consistency_level="Strong"
    )
    rows: list[Row] = []
    try:
        while batch := iterator.next():
            rows += batch
    finally:
        iterator.close()
    return rows


def count_rows(client: MilvusClient, table: str) -> int:
    """Number of rows in a table."""
    return int(some_rows(client, table, "", ["count(*)"])[0]["count(*)"])


def stored_images(client: MilvusClient, table: str, ids: Iterable[str]) -> dict[str, StoredImage]:
    """Those of the images that exist, by id."""
    chosen = list(ids)
    if not chosen:
        return {}
    rows = every_row(client, table, listed("image_id", chosen), ["image_id", "created_ms", "body"])
    return {row["image_id"]: tables.image_of(row) for row in rows}


def record_counts(
    client: MilvusClient, table: str, images: Sequence[str], level: Level | None = None
) -> dict[str, int]:
    """Numbers of records by image; images without any are left out."""
    counts: dict[str, int] = {}
    if images:
        term = expression(replace(NO_FILTER, image_ids=tuple(images)), level)
        for row in every_row(client, table, term, ["record_id", "image_id"]):
            counts[row["image_id"]] = counts.get(row["image_id"], 0) + 1
    return counts


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
