"""What the stages of a backfill pass on: Arrow tables with a row for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import region_search_pb2

# Not the fault of one image: the run ends, and the next one continues from there.
_SYSTEMIC = frozenset(
    {
        Kind.UNAUTHENTICATED, Kind.PERMISSION_DENIED, Kind.NOT_FOUND, Kind.MODEL_MISMATCH, Kind.OVERLOADED,
        Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED, Kind.CANCELLED, Kind.STORAGE_FULL, Kind.UNIMPLEMENTED,
    }
)  # fmt: skip


def is_systemic(error: Exception) -> bool:
    """Whether an error is not the fault of one image."""
    return isinstance(error, RegionSearchError) and error.kind in _SYSTEMIC


@dataclass
class Row:
    """One image in progress. Stages skip it once it has an outcome.

    Attributes:
        source: Where it was read.
        request: `IngestImageRequest` without the image: its name, tags and attributes.
        data: Bytes of its file; empty once it has an outcome.
        image_id: Their SHA-256.
        content_type: By the file's header.
        facts: Attributes that the file states itself, as JSON.
        segmented: `SegmentResponse`.
        vectors: float32 (1 + regions, dimension), of the whole image and of its regions.
        outcome: created, duplicate or failed; empty while in progress.
        code: Kind of the error of a failed image.
        detail: Its message.
        regions: Number of regions.
    """

    source: str
    request: bytes = b""
    data: bytes = b""
    image_id: str = ""
    content_type: str = ""
    facts: str = "{}"
    segmented: bytes = b""
    vectors: bytes = b""
    outcome: str = ""
    code: str = ""
    detail: str = ""
    regions: int = 0

    def fail(self, error: Exception) -> None:
        """Records why the image cannot be added; raises a systemic error."""
        if is_systemic(error):
            raise error
        if isinstance(error, RegionSearchError):
            self._end("failed", error.kind.value, error.message)
        else:
            self._end("failed", Kind.INTERNAL.value, f"{type(error).__name__}: {error}")

    def finish(self, answer: region_search_pb2.IngestImageResponse) -> None:
        """Records the writer's answer."""
        self.regions = answer.region_count
        self._end(
            region_search_pb2.IngestOutcome.Name(answer.outcome).removeprefix("INGEST_OUTCOME_").lower()
        )

    def _end(self, outcome: str, code: str = "", detail: str = "") -> None:
        self.outcome, self.code, self.detail = outcome, code, detail
        self.data = self.segmented = self.vectors = b""


_TYPES = {"str": pa.string(), "bytes": pa.large_binary(), "int": pa.int64()}
SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in dataclasses.fields(Row)])
OUTCOMES = ("source", "image_id", "outcome", "regions", "code", "detail")
"""The columns of the files of outcomes."""


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as an Arrow table of `SCHEMA`."""
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], SCHEMA)


def from_table(table: pa.Table) -> list[Row]:
    """The rows of an Arrow table of `SCHEMA`."""
    return [Row(**values) for values in table.to_pylist()]
