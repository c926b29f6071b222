"""What the searcher tells Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from regionsearch.errors import Kind, RegionSearchError
from services.searcher import metrics
from services.searcher.types import CollectionStats


async def test_gauges_of_the_last_deleted_collection_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PERIOD_S", 0.0)
    one = CollectionStats("gone-in-the-end", 1, 2, 3, 0, 100, ())
    seen: list[float | None] = []
    asked, loop = asyncio.Event(), asyncio.get_running_loop()

    def stats(name: str | None) -> list[CollectionStats]:
        seen.append(REGISTRY.get_sample_value("regionsearch_index_images", {"collection": one.collection}))
        if len(seen) == 4:
            loop.call_soon_threadsafe(asked.set)
        if len(seen) == 2:
            raise RegionSearchError(Kind.UNAVAILABLE, "restoring")
        return [one] if len(seen) == 1 else []

    engine = SimpleNamespace(stats=stats, disk_bytes=lambda: 0)
    task = asyncio.create_task(metrics.report_sizes(engine))  # type: ignore[arg-type]
    await asyncio.wait_for(asked.wait(), 60)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert seen[:4] == [None, 2.0, 2.0, None]
