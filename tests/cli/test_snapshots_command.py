"""`regionsearch snapshots` against a searcher that only knows names of snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from typer.testing import CliRunner, Result

from regionsearch.cli import app
from regionsearch.errors import Kind, RegionSearchError, not_found, to_status
from regionsearch.v1 import search_pb2 as pb
from regionsearch.v1 import search_pb2_grpc


class Searcher(search_pb2_grpc.SearchServiceServicer):
    def __init__(self) -> None:
        self.names = ["old"]
        self.restored: list[tuple[str, str]] = []

    def ListSnapshots(self, request, context):
        return pb.ListSnapshotsResponse(
            snapshots=[pb.SnapshotFile(name=name, size_bytes=2_500_000) for name in self.names]
        )

    def Snapshot(self, request, context):
        self.names = [request.name or "made", *self.names][: request.keep or None]
        return pb.SnapshotResponse(name=self.names[0], size_bytes=1_000_000, seq=7)

    def DeleteSnapshot(self, request, context):
        if request.name not in self.names:
            context.abort_with_status(to_status(not_found("name", f"there is no snapshot {request.name!r}")))
        self.names.remove(request.name)
        return pb.DeleteSnapshotResponse()

    def Restore(self, request, context):
        self.restored.append((request.name, request.collection))
        return pb.RestoreResponse(seq=7, collection_count=1)


@pytest.fixture
def searcher() -> Iterator[tuple[Searcher, Callable[..., Result]]]:
    server, servicer = grpc.server(ThreadPoolExecutor(2)), Searcher()
    search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def run(*arguments: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(
            app, ["snapshots", "--searcher", f"127.0.0.1:{port}", *arguments], input=answer
        )

    yield servicer, run
    server.stop(None)


def test_snapshots_are_listed_created_and_deleted(searcher) -> None:
    servicer, run = searcher
    assert run("create", "new", "--keep", "2").stdout == "new\n"
    assert run("list").stdout.splitlines()[1].split("\t")[:2] == ["new", "2.5"]
    assert '"name": "old"' in run("list", "--json").stdout
    assert run("delete", "old").exit_code == 0
    assert servicer.names == ["new"]
    refused = run("delete", "old").exception
    assert isinstance(refused, RegionSearchError)
    assert refused.kind is Kind.NOT_FOUND


def test_a_restore_asks_first(searcher) -> None:
    servicer, run = searcher
    assert run("restore", "old", answer="n\n").exit_code == 1
    assert servicer.restored == []
    assert run("restore", "old", answer="y\n").exit_code == 0
    assert run("restore", "old", "--collection", "photos", "--yes").exit_code == 0
    assert servicer.restored == [("old", ""), ("old", "photos")]
