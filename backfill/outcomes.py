"""The outcome of every image, in Parquet files, and their counts."""

from __future__ import annotations

import contextlib
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

_PERIOD_S = 10.0


class Outcomes:
    """Writes outcomes to a folder, as complete files; several runs may share it.

    Args:
        url: Folder or fsspec URL.

    Attributes:
        counts: Images by outcome.
        reasons: Failed images by the kind of their error.
        regions: Regions of created images.
    """

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._fs.makedirs(self._root, exist_ok=True)
        self._run = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        self._files = 0
        self._pending: list[pa.Table] = []
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.regions = 0

    def add(self, table: pa.Table) -> None:
        """Adds a table with the columns `backfill.rows.OUTCOMES`."""
        with self._lock:
            self._pending.append(table)
        for row in table.select(["outcome", "code", "regions"]).to_pylist():
            self.counts[row["outcome"]] += 1
            if row["code"]:
                self.reasons[row["code"]] += 1
            if row["outcome"] == "created":
                self.regions += row["regions"]

    def write(self) -> None:
        """Writes the outcomes since the last file."""
        with self._lock:
            if not self._pending:
                return
            buffer = io.BytesIO()
            pq.write_table(pa.concat_tables(self._pending), buffer)
            name = f"{self._run}-{self._files:05d}.parquet"
            part = f"{self._root}/.{name}.part"  # readers of the folder skip it
            self._fs.pipe_file(part, buffer.getvalue())
            self._fs.mv(part, f"{self._root}/{name}")
            self._files += 1
            self._pending = []

    @contextlib.contextmanager
    def written(self, report: Callable[[], None]) -> Iterator[None]:
        """Writes every ten seconds and in the end; calls `report` after each write but the last."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(_PERIOD_S):
                self.write()
                report()

        thread = threading.Thread(target=run, name="outcomes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.write()

    @property
    def total(self) -> int:
        """Images with an outcome."""
        return self.counts.total()
