"""Read replicas over gRPC: they follow, wait for what their callers have seen, and outlive their writer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from regionsearch.errors import Kind
from regionsearch.rpc.calls import SEEN_HEADER
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.runtime.server import Server, serving
from services.searcher import replication
from services.searcher.__main__ import SERVICES, searcher
from services.searcher.settings import EmbeddedSettings, SearcherSettings
from tests.searcher.conftest import MODEL_INFO, failing, search_request, unit_vectors, upsert_request
from tests.stack import free_port


@dataclass
class Searcher:
    server: Server
    stub: search_pb2_grpc.SearchServiceAsyncStub


@contextlib.asynccontextmanager
async def started(folder: Path, port: int, follow: str = "") -> AsyncIterator[Searcher]:
    embedded = EmbeddedSettings(folder=folder, chunk_rows=32, passes=1)
    process = SearcherSettings(port=port, drain_delay_s=0, follow=follow, embedded=embedded)
    async with (
        serving(process, SERVICES, searcher(process)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Searcher(server, search_pb2_grpc.SearchServiceStub(channel))


async def names(searcher: Searcher) -> list[str]:
    listed = await searcher.stub.ListCollections(search_pb2.ListCollectionsRequest())
    return [one.name for one in listed.collections]


def metric(name: str) -> float:
    value = REGISTRY.get_sample_value(name)
    assert value is not None
    return value


async def test_a_replica_follows_waits_for_what_callers_have_seen_and_outlives_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "_RETRY_S", (0.05, 0.1))
    port = free_port()
    vectors = unit_vectors(40).reshape(10, 4, -1)
    everything = search_request(vectors[0, :1], page_size=100)
    async with contextlib.AsyncExitStack() as stack:
        # The replica starts first, and serves once it has a copy.
        replica_up = asyncio.create_task(
            stack.enter_async_context(started(tmp_path / "replica", 0, f"127.0.0.1:{port}"))
        )
        async with started(tmp_path / "writer", port) as writer:
            create = search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO)
            assert (await writer.stub.CreateCollection(create)).seq == 1
            replica = await replica_up
            for number, rows in enumerate(vectors):
                written = await writer.stub.Upsert(upsert_request(f"image{number}", rows))
                # Both ways to see one's own writes: a header for every read, and min_seq.
                seen = ((SEEN_HEADER, str(written.seq)),)
                if number % 2:
                    found = await replica.stub.Search(everything, metadata=seen)
                else:
                    wanted = search_request(vectors[0, :1], page_size=100, min_seq=written.seq)
                    found = await replica.stub.Search(wanted)
                assert found == await writer.stub.Search(everything)
            first = search_request(vectors[0, :1], page_size=5)
            token = (await writer.stub.Search(first)).results[0].next_page_token
            deleted = await writer.stub.Delete(
                search_pb2.DeleteRequest(collection="default", image_ids=["image3"])
            )
            second = search_request(vectors[0, :1], page_size=5, page_token=token)
            assert await replica.stub.Search(second) == await writer.stub.Search(second)
            refused = replica.stub.Upsert(upsert_request("other", vectors[0]))
            assert await failing(refused) == (Kind.FAILED_PRECONDITION, None)
            unknown = search_request(vectors[0, :1], min_seq=deleted.seq + 1)
            assert await failing(replica.stub.Search(unknown)) == (Kind.UNAVAILABLE, None)
            assert await failing(writer.stub.Search(unknown)) == (Kind.FAILED_PRECONDITION, "min_seq")
            assert metric("regionsearch_replicas") == 1
            assert metric("regionsearch_replica_lag_writes") == 0
            assert 0 <= metric("regionsearch_replica_lag_seconds") < 60
            expected = await writer.stub.Search(everything)
            await writer.stub.Snapshot(search_pb2.SnapshotRequest(name="one"))

        assert await replica.stub.Search(everything) == expected, "the writer is away"
        unseen = ((SEEN_HEADER, str(deleted.seq + 1)),)
        assert await replica.stub.Search(everything, metadata=unseen, timeout=20) == expected

        async with started(tmp_path / "writer", port) as writer:
            created = await writer.stub.CreateCollection(
                search_pb2.CreateCollectionRequest(name="later", model=MODEL_INFO)
            )
            while "later" not in await names(replica):  # noqa: ASYNC110  # of a process, in effect
                await asyncio.sleep(0.01)
            assert created.seq == deleted.seq + 1
            await writer.stub.Restore(search_pb2.RestoreRequest(name="one"))
            known: list[str] = []
            while known != ["default"]:
                with contextlib.suppress(grpc.aio.AioRpcError):  # while it loads the new copy
                    known = await names(replica)
                await asyncio.sleep(0.05)
            np.testing.assert_equal(
                await replica.stub.Search(everything), await writer.stub.Search(everything)
            )
