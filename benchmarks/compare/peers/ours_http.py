"""All of ours, as `regionsearch up` starts it, over HTTP."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.compare import driver
from loadtests.launch import Stack
from regionsearch import Client


class Peer(driver.Peer):
    """Four processes and a client."""

    version = version("regionsearch")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stack = Stack(folder)
        self._stack.start()
        self._client = Client(self.url)

    @property
    def url(self) -> str:
        """Where the client goes."""
        return self._stack.http

    def add(self, first: int, items: Any) -> None:
        named = [(str(number), data) for number, data in enumerate(items, first)]
        for result in self._client.ingest(named):
            if result.error:
                raise RuntimeError(result.error)

    def ask(self, query: Any, below: int | None = None) -> list[Any]:
        hits = self._client.search(query, page_size=10, level="region")
        return [[hit.image.name, hit.region_id] for hit in hits]

    def count(self) -> int:
        with Client(self._stack.http) as client:  # over gRPC it lists no collections
            return sum(collection.image_count for collection in client.collections())

    def stop(self) -> None:
        self._client.close()
        self._stack.stop()
