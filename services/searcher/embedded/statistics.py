"""Sizes and recall of a collection."""

from __future__ import annotations

from collections.abc import Sequence

from services.searcher.embedded.index.approximate import ApproximateSegment
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.open_collections import OpenCollection
from services.searcher.embedded.planning import approximate_segments
from services.searcher.embedded.store import reads
from services.searcher.embedded.store.database import Database
from services.searcher.reports import CollectionStats, SegmentStats


def statistics(database: Database, collection: OpenCollection, seq: int) -> CollectionStats:
    """Sizes and recall of an open collection after write `seq`."""
    views = collection.index.state.views
    with database.reading() as connection:
        image_count, record_count = reads.counts(connection, collection.rowid)
    segments = tuple(
        SegmentStats(
            view.rows - view.segment.columns.dead,
            view.segment.columns.dead,
            "growing"
            if view is views[-1] and view.rows < view.segment.columns.capacity
            else view.segment.kind,
            view.segment.recall,
        )
        for view in views
    )
    return CollectionStats(
        collection=collection.spec.name,
        seq=seq,
        image_count=image_count,
        record_count=record_count,
        tombstone_count=sum(segment.tombstone_count for segment in segments),
        memory_bytes=sum(v.segment.vector_bytes + v.segment.columns.nbytes for v in views),
        segments=segments,
        binary_recall=_binary_recall(segments),
        recalls=_recalls(approximate_segments(collection)),
    )


def _recalls(segments: Sequence[ApproximateSegment]) -> dict[str, float]:
    """Mean recall by kind of query, weighted by rows."""
    found: dict[str, float] = {}
    for kind in QueryKind:
        known = [(s.recalls[kind], s.columns.used) for s in segments if kind in s.recalls]
        if known:
            found[kind.value] = sum(r * n for r, n in known) / sum(n for _, n in known)
    return found


def _binary_recall(segments: Sequence[SegmentStats]) -> float | None:
    """Mean recall of the segments with codes, by rows."""
    coded = [(s.recall, s.record_count) for s in segments if s.index == "codes" and s.recall is not None]
    rows = sum(count for _, count in coded)
    return sum(recall * count for recall, count in coded) / rows if rows else None
