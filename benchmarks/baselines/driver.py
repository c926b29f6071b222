"""Runs inside a peer's environment: answers requests on stdin with measurements on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HITS = 10


def serve(search: Callable[[np.ndarray, bool], list[int]], folder: Path) -> None:
    """Serves until stdin ends.

    Args:
        search: Finds the best ten rows of one query, with or without the filter.
        folder: Holds queries.npy.
    """
    queries = np.load(folder / "queries.npy")
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        chosen = queries[: asked["queries"]]
        if asked["do"] == "rows":
            _say({"rows": [search(query, False) for query in chosen]})
            continue
        filtered = asked["filtered"]
        with ThreadPoolExecutor(asked["callers"]) as pool:
            begin = time.perf_counter()
            list(pool.map(lambda query: search(query, filtered), chosen))  # noqa: B023  # ends in this turn
            _say({"rate": len(chosen) / (time.perf_counter() - begin)})


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)
