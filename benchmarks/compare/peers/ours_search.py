"""Our searcher as a process of its own, over gRPC: exact below a million records by default."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.compare import driver
from benchmarks.searcher_rig import MODEL_INFO, REGIONS
from loadtests.launch import Process, stop_all
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.searcher.settings import EmbeddedSettings


class Peer(driver.Peer):
    """Images of 50 regions; the part is a number among an image's attributes."""

    version = version("regionsearch")
    ann_above = int(EmbeddedSettings.model_fields["ann_above"].default)
    settings: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        settings = {"embedded__folder": folder / "store", "drain_delay_s": 0, **self.settings}
        self._server = Process("searcher", folder, "searcher", settings)
        self._stub = search_pb2_grpc.SearchServiceStub(grpc.insecure_channel(self._server.start()))
        collection = search_pb2.Collection(name="c", model=MODEL_INFO)
        if not self._stub.ListCollections(search_pb2.ListCollectionsRequest()).collections:
            self._stub.CreateCollection(
                search_pb2.CreateCollectionRequest(name=collection.name, model=collection.model)
            )

    def add(self, first: int, items: Any) -> None:
        vectors, parts = items
        rows = range(first, first + len(vectors))
        self._stub.Upsert(
            search_pb2.UpsertRequest(
                collection="c",
                model=MODEL_INFO,
                images=[
                    search_pb2.StoredImage(
                        image_id=f"i{row // REGIONS}", attributes={"part": str(parts[row - first])}
                    )
                    for row in rows[::REGIONS]
                ],
                records=[
                    search_pb2.Record(
                        record_id=f"r{row}", image_id=f"i{row // REGIONS}", level=search_pb2.LEVEL_REGION
                    )
                    for row in rows
                ],
                vectors=tensor_to_proto(vectors),
            )
        )

    def finish(self) -> None:
        """Waits until the background has indexed all but the last rows, if there are enough for an index."""
        while True:
            stats = self._stub.GetStats(search_pb2.GetStatsRequest(collection="c")).collections[0]
            indexed = sum(s.record_count for s in stats.segments if s.HasField("recall"))
            if stats.record_count < self.ann_above or indexed > 0.8 * stats.record_count:
                return
            time.sleep(0.5)

    def ask(self, query: Any, below: int | None = None) -> list[int]:
        chosen = search_pb2.Filter()
        if below is not None:
            number = search_pb2.NumberRange(lt=below)
            chosen.conditions.append(search_pb2.Condition(attribute="part", number=number))
        found = self._stub.Search(
            search_pb2.SearchRequest(
                collection="c",
                model=MODEL_INFO,
                queries=tensor_to_proto(query[np.newaxis]),
                page_size=10,
                filter=chosen,
            )
        )
        return [int(hit.record.record_id[1:]) for hit in found.results[0].hits]

    def count(self) -> int:
        asked = search_pb2.GetStatsRequest(collection="c")
        return int(self._stub.GetStats(asked).collections[0].record_count)

    def stop(self) -> None:
        stop_all([self._server])
