"""Our searcher with approximate indexes at any size, whose recall it tunes itself."""

from __future__ import annotations

from benchmarks.compare.peers import ours_search


class Peer(ours_search.Peer):
    """`ann_above` 1 in place of the default."""

    ann_above = 1
    settings = {"embedded__ann_above": 1, "embedded__ann_rows": 16_384, "embedded__build_threads": 2}  # noqa: RUF012
