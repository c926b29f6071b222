"""Statistics and snapshots that an engine reports: sizes, recall, finished files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SegmentStats:
    """One part of the index. `recall` is recall@10 against exact search; None where the index is exact."""

    record_count: int
    tombstone_count: int
    index: str
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Sizes of a collection, and the recall of its indexes, `recalls` by kind of query."""

    collection: str
    seq: int
    image_count: int
    record_count: int
    tombstone_count: int
    memory_bytes: int
    segments: tuple[SegmentStats, ...]
    binary_recall: float | None = None
    recalls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A snapshot that can be restored; `created_ms` is milliseconds since 1970."""

    name: str
    size_bytes: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A finished snapshot: file name, size in bytes, and the last write that it holds."""

    name: str
    size_bytes: int
    seq: int
