"""Snapshots over gRPC: taken, listed, restored, refused."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import search_pb2
from services.searcher.embedded.store.database import Database
from tests.searcher.conftest import (
    MODEL_INFO,
    failing,
    ingest,
    search_request,
    unit_vectors,
    upsert_request,
)


async def test_snapshot_and_restore_over_grpc(stub, settings) -> None:
    vectors = await ingest(stub, 3)
    request = search_request(vectors[1, :1], page_size=100)
    before = await stub.Search(request)
    taken = await stub.Snapshot(search_pb2.SnapshotRequest(name="monday"))
    assert (settings.folder / "snapshots" / "monday").stat().st_size == taken.size_bytes
    await stub.Delete(search_pb2.DeleteRequest(collection="default", image_ids=["image01"]))
    await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="other", model=MODEL_INFO))
    restored = await stub.Restore(search_pb2.RestoreRequest(name="monday"))
    assert restored.collection_count == 1
    assert restored.seq > taken.seq
    after = await stub.Search(request)
    assert after.results == before.results
    listed = await stub.ListCollections(search_pb2.ListCollectionsRequest())
    assert [collection.name for collection in listed.collections] == ["default"]
    written = await stub.Upsert(upsert_request("new", unit_vectors(1)))
    assert written.seq > restored.seq


async def test_snapshots_are_listed_deleted_and_kept_in_number_over_grpc(stub) -> None:
    async def names() -> list[str]:
        listed = await stub.ListSnapshots(search_pb2.ListSnapshotsRequest())
        assert all(one.size_bytes > 0 and one.create_time.seconds > 0 for one in listed.snapshots)
        return [one.name for one in listed.snapshots]

    assert await names() == []
    for name in ("a", "b", "c"):
        await stub.Snapshot(search_pb2.SnapshotRequest(name=name))
    assert await names() == ["c", "b", "a"]
    await stub.DeleteSnapshot(search_pb2.DeleteSnapshotRequest(name="b"))
    assert await names() == ["c", "a"]
    await stub.Snapshot(search_pb2.SnapshotRequest(name="d", keep=2))
    assert await names() == ["d", "c"]
    missing = stub.DeleteSnapshot(search_pb2.DeleteSnapshotRequest(name="b"))
    assert await failing(missing) == (Kind.NOT_FOUND, "name")
    outside = stub.DeleteSnapshot(search_pb2.DeleteSnapshotRequest(name="../records.sqlite"))
    assert await failing(outside) == (Kind.INVALID_ARGUMENT, "name")
    negative = stub.Snapshot(search_pb2.SnapshotRequest(keep=-1))
    assert await failing(negative) == (Kind.INVALID_ARGUMENT, "keep")


async def test_a_second_snapshot_is_refused_at_once_and_writes_go_on(
    stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(stub, 3)
    begun, gate = threading.Event(), threading.Event()
    copy = Database.copy_to

    def slow(database: Database, target: Path) -> None:
        begun.set()
        assert gate.wait(60)
        copy(database, target)

    monkeypatch.setattr(Database, "copy_to", slow)
    first = asyncio.ensure_future(stub.Snapshot(search_pb2.SnapshotRequest(name="first")))
    await asyncio.to_thread(begun.wait, 60)
    others = [failing(stub.Snapshot(search_pb2.SnapshotRequest(name=f"s{n}"))) for n in range(64)]
    others.append(failing(stub.Restore(search_pb2.RestoreRequest(name="first"))))
    assert {kind for kind, _ in await asyncio.gather(*others)} == {Kind.OVERLOADED}
    await stub.Upsert(upsert_request("meanwhile", unit_vectors(2)))
    gate.set()
    assert (await first).name == "first"
    await stub.Snapshot(search_pb2.SnapshotRequest(name="second"))


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_foreign_snapshot_is_refused_by_name(stub, settings) -> None:
    vectors = await ingest(stub, 1)
    folder: Path = settings.folder / "snapshots"
    put(folder, {"foreign": b"no database at all" * 1000, "empty": b""})
    for name in ("foreign", "empty"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Restore(search_pb2.RestoreRequest(name=name))
        error = from_rpc_error(caught.value)
        assert error.kind is Kind.DATA_LOSS
        assert name in error.message
    assert names(folder) == ["empty", "foreign"]
    assert len((await stub.Search(search_request(vectors[0, :1]))).results[0].hits) == 4
