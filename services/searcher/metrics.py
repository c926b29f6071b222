"""Prometheus metrics of the searcher: sizes of the indexes, and how much is merged."""

from __future__ import annotations

import asyncio

from prometheus_client import Counter, Gauge, Histogram

from regionsearch.errors import RegionSearchError
from services.searcher.engine import Engine

_PERIOD_S = 10.0
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

PASS_QUERIES = Histogram("regionsearch_search_pass_queries", "Requests answered by one pass.", buckets=_SIZES)
COMMIT_WRITES = Histogram("regionsearch_commit_writes", "Writes made durable by one commit.", buckets=_SIZES)

DAMAGED_ROWS = Counter(
    "regionsearch_store_damaged_rows_total",
    "Times that a damaged row was left out of a list or a search's answer.",
)

CHECKPOINT_FAILURES = Counter(
    "regionsearch_store_checkpoint_failures_total", "Failed checkpoints of the log into the record file."
)
LOG_BYTES = Gauge("regionsearch_store_log_bytes", "Size of the record store's log.")

SNAPSHOT_FAILURES = Counter(
    "regionsearch_snapshot_failures_total", "Scheduled snapshots that could not be taken."
)
SNAPSHOT_TIME = Gauge(
    "regionsearch_snapshot_timestamp_seconds",
    "When the last scheduled snapshot was taken, in seconds since 1970; 0 before there is one.",
)

REPLICAS = Gauge("regionsearch_replicas", "Read replicas that follow this searcher.")
REPLICA_LAG_WRITES = Gauge(
    "regionsearch_replica_lag_writes", "Writes of the followed searcher that this read replica lacks."
)
REPLICA_LAG_SECONDS = Gauge(
    "regionsearch_replica_lag_seconds",
    "Time since this read replica had every write of the searcher that it follows; 0 if it follows none.",
)

_COLLECTION = ("collection",)
_RECORDS = Gauge("regionsearch_index_records", "Records that can be found.", _COLLECTION)
_IMAGES = Gauge("regionsearch_index_images", "Images.", _COLLECTION)
_TOMBSTONES = Gauge("regionsearch_index_tombstones", "Deleted rows still in memory.", _COLLECTION)
_MEMORY = Gauge("regionsearch_index_memory_bytes", "Memory of vectors and columns.", _COLLECTION)
_RECALL = Gauge(
    "regionsearch_index_recall",
    "recall@10 of approximate indexes by kind of query, measured with the last queries.",
    ("collection", "kind"),
)
_DISK = Gauge("regionsearch_store_disk_bytes", "Size of the record store.")


async def report_sizes(engine: Engine) -> None:
    """Keeps the gauges up to date, until it is cancelled."""
    known: set[str] = set()
    while True:
        try:
            found = await asyncio.to_thread(engine.stats, None)
            _DISK.set(await asyncio.to_thread(engine.disk_bytes))
        except RegionSearchError:  # restoring
            await asyncio.sleep(_PERIOD_S)
            continue
        for stats in found:
            _RECORDS.labels(stats.collection).set(stats.record_count)
            _IMAGES.labels(stats.collection).set(stats.image_count)
            _TOMBSTONES.labels(stats.collection).set(stats.tombstone_count)
            _MEMORY.labels(stats.collection).set(stats.memory_bytes)
            for kind, recall in stats.recalls.items():
                _RECALL.labels(stats.collection, kind).set(recall)
        names = {stats.collection for stats in found}
        for gone in known - names:
            for gauge in (_RECORDS, _IMAGES, _TOMBSTONES, _MEMORY):
                gauge.remove(gone)
            _RECALL.remove_by_labels({"collection": gone})
        known = names
        await asyncio.sleep(_PERIOD_S)
