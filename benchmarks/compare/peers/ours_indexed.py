"""Our searcher with approximate indexes at any size, whose recall it tunes itself."""

from __future__ import annotations

import time

from benchmarks.compare.peers import ours_search
from regionsearch.v1 import search_pb2


class Peer(ours_search.Peer):
    """`ann_above` 1 in place of a million records."""

    settings = {"embedded__ann_above": 1, "embedded__ann_rows": 16_384, "embedded__build_threads": 2}  # noqa: RUF012

    def finish(self) -> None:
        """Waits until the background has indexed all but the last rows."""
        while True:
            stats = self._stub.GetStats(search_pb2.GetStatsRequest(collection="c")).collections[0]
            indexed = sum(s.record_count for s in stats.segments if s.index not in ("", "flat", "exact"))
            if indexed > 0.8 * stats.record_count:
                return
            time.sleep(0.5)
