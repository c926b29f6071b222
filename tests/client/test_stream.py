"""Many images over one gRPC stream, with both clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regionsearch import AsyncClient, Client
from regionsearch.client import IngestProgress
from regionsearch.client.streaming import IngestStream
from regionsearch.errors import Kind, RegionSearchError
from tests.client.fakes import FakeGateway


def test_a_stream_tells_of_every_stage(gateway: FakeGateway, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    sources = [("a.png", b"a"), missing, ("b.png", b"bad"), ("again.png", b"a")]

    async def run() -> list[Any]:
        async with AsyncClient(gateway.grpc) as client:
            return [one async for one in client.ingest_stream(sources, "things", tags=["t"])]

    with Client(gateway.grpc) as client:
        blocking = list(client.ingest_stream(sources, "things", tags=["t"]))
    for told, first in ((blocking, "created"), (asyncio.run(run()), "duplicate")):
        done = {one.name: one.result for one in told if one.stage == "done"}
        assert {name: result.outcome for name, result in done.items()} == {
            "a.png": first, "missing.png": "failed", "b.png": "failed", "again.png": "duplicate",
        }  # fmt: skip
        assert "cannot be read" in done["missing.png"].error.detail
        assert done["b.png"].error.code == "UNSUPPORTED_IMAGE"
        assert [one.name for one in told if one.stage == "segmenting"] == ["a.png", "b.png", "again.png"]
    asked = gateway.requests[0].request
    assert (asked.collection, asked.name, list(asked.tags)) == ("things", "a.png", ["t"])


def test_a_stream_that_fails_says_why(gateway: FakeGateway) -> None:
    told = threading.Event()

    def broken() -> Iterator[tuple[str, bytes]]:
        yield "a", b"a"
        assert told.wait(60)  # else the gateway might take it after this call, and the next one's failure
        raise ZeroDivisionError

    def stream(client: Client) -> None:
        for _ in client.ingest_stream(broken()):
            told.set()

    with Client(gateway.grpc) as client:
        with pytest.raises(ZeroDivisionError):
            stream(client)
        gateway.failures = [RegionSearchError(Kind.PERMISSION_DENIED, "may not write")]
        with pytest.raises(RegionSearchError, match="may not write") as caught:
            list(client.ingest_stream([("a", b"a")]))
    assert caught.value.kind is Kind.PERMISSION_DENIED
    with Client(gateway.http) as client, pytest.raises(RegionSearchError, match="gRPC only"):
        client.ingest_stream([])


def test_a_stream_that_ends_early_does_not_blame_the_images() -> None:
    """gRPC drops the requests of a call that has failed; the call's own error is the one that counts."""
    stream = IngestStream([("a", b"a"), ("b", b"b")])
    requests = stream.requests()
    next(requests)
    requests.close()
    assert stream.error is None


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.CANCELLED])
def test_a_stream_that_breaks_off_goes_on_over_another(
    gateway: FakeGateway, kind: Kind, asynchronous: bool
) -> None:
    sources = [(name, name.encode()) for name in "abcde"]
    gateway.failures = [None, None, RegionSearchError(kind, "gone")]  # after a and b
    steps = _stream(gateway.grpc, sources, asynchronous)
    assert [step.name for step in steps if step.stage == "done"] == list("abcde")
    assert all(step.result.outcome == "created" for step in steps if step.stage == "done")
    taken = [request.request.name for request in gateway.requests]
    assert taken[:3] == ["a", "b", "c"]
    assert taken[3:] == ["c", "d", "e"]  # and nothing twice that had its result


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_that_was_lost_on_its_way_is_sent_again(gateway: FakeGateway, asynchronous: bool) -> None:
    gateway.lost = {"1", "2"}
    steps = _stream(gateway.grpc, [(name, name.encode()) for name in "abcd"], asynchronous)
    assert [step.name for step in steps if step.stage == "done"] == list("adbc")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_gateway_that_never_gets_on_is_given_up(gateway: FakeGateway, asynchronous: bool) -> None:
    gateway.failures = [RegionSearchError(Kind.UNAVAILABLE, f"gone {time}") for time in range(3)]
    with pytest.raises(RegionSearchError) as caught:
        _stream(gateway.grpc, [("a", b"a")], asynchronous, retries=2)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert not gateway.failures


def test_a_source_that_is_read_slowly_when_its_call_ends_is_sent_with_the_next() -> None:
    """gRPC reads the requests in a thread of its own, which may outlive its call."""
    opened, going_on = threading.Event(), threading.Event()

    def slow() -> Iterator[tuple[str, bytes]]:
        yield "a", b"a"
        opened.set()
        assert going_on.wait(60)
        yield "b", b"b"

    stream = IngestStream(slow())
    first, second = stream.requests(), stream.requests()
    next(first)
    reader = threading.Thread(target=next, args=(first,))
    reader.start()
    assert opened.wait(60)
    going_on.set()
    assert [request.key for request in second] == ["0", "1"]
    reader.join(60)
    assert not stream.complete


def _stream(
    address: str, sources: list[tuple[str, bytes]], asynchronous: bool, retries: int = 4
) -> list[IngestProgress]:
    async def run() -> list[IngestProgress]:
        async with AsyncClient(address, retries=retries) as client:
            return [one async for one in client.ingest_stream(sources)]

    if asynchronous:
        return asyncio.run(run())
    with Client(address, retries=retries) as client:
        return list(client.ingest_stream(sources))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_to_a_gateway_that_is_not_there(asynchronous: bool) -> None:
    with pytest.raises(RegionSearchError) as caught:
        _stream("grpc://127.0.0.1:9", [("a", b"a")], asynchronous, retries=1)
    assert caught.value.kind is Kind.UNAVAILABLE
