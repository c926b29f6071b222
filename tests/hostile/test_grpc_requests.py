"""What may arrive over gRPC before and instead of a message: strangers, other bytes, nothing, too much."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from tests.runtime.conftest import EMBED, echo_server
from tests.stack import Stack

NOT_A_MESSAGE = b"\xff\xff\xff"
REQUEST = embed_pb2.EmbedTextsRequest(texts=["a"])
TEXTS = "/regionsearch.v1.EmbedService/EmbedTexts"


@contextlib.asynccontextmanager
async def channel_to(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def check_refused(error: grpc.RpcError) -> None:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = from_rpc_error(error)
    assert (found.kind, found.field) == (Kind.INVALID_ARGUMENT, "request")
    assert "not a valid" in found.message


METHODS = [
    ("segmenter", "regionsearch.v1.SegmentService/Segment"),
    ("embedder", "regionsearch.v1.EmbedService/EmbedRegions"),
    ("searcher", "regionsearch.v1.SearchService/Upsert"),
    ("gateway", "regionsearch.v1.RegionSearchService/Search"),
    ("segmenter", "regionsearch.v1.SegmentService/SegmentStream"),
    ("searcher", "regionsearch.v1.SearchService/BulkUpsert"),
    ("gateway", "regionsearch.v1.RegionSearchService/IngestImages"),
]


@pytest.mark.parametrize(("process", "method"), METHODS, ids=[method for _, method in METHODS])
def test_bytes_that_are_not_a_message_are_invalid_arguments_of_every_server(
    stack: Stack, process: str, method: str
) -> None:
    offset = {"gateway": 0, "segmenter": 1, "embedder": 2, "searcher": 3}[process]
    host, _, port = stack.grpc.partition(":")
    with grpc.insecure_channel(f"{host}:{int(port) + offset}") as channel:
        call = channel.stream_stream(f"/{method}")(iter([NOT_A_MESSAGE]), timeout=60)  # the same on the wire
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    check_refused(caught.value)


async def test_a_stranger_is_told_so_before_anything_of_a_request_is_received() -> None:
    """A caller that never sends its message learns that its key is wrong; so does one that sends nonsense."""
    async with echo_server(api_keys=("right",)) as (server, _, _), channel_to(server.port) as channel:
        call = channel.stream_unary(TEXTS)(metadata=(("x-api-key", "wrong"),), timeout=60)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        call = channel.unary_unary(TEXTS)(NOT_A_MESSAGE, metadata=(("x-api-key", "wrong"),), timeout=60)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_without_a_message_is_an_invalid_argument() -> None:
    async with echo_server() as (server, _, _), channel_to(server.port) as channel:
        call = channel.stream_unary(TEXTS)(timeout=60)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no request message" in await call.details()


async def test_a_message_that_does_not_come_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.requests._RECEIVE_S", 0.2)
    async with echo_server() as (server, _, _), channel_to(server.port) as channel:
        call = channel.stream_unary(TEXTS)()
        assert await asyncio.wait_for(call.code(), 60) is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("settings", "request_"),
    [
        ({"max_concurrent_calls": 4}, REQUEST),  # one caller gets half
        ({"max_concurrent_bytes": 450_000}, embed_pb2.EmbedTextsRequest(texts=["x" * 100_000])),
    ],
    ids=["calls", "bytes"],
)
async def test_calls_over_a_limit_are_refused_with_a_time_and_health_is_answered(
    settings: dict[str, int], request_: embed_pb2.EmbedTextsRequest
) -> None:
    running, release = 0, asyncio.Event()

    async def hold(request: Any, context: Any) -> None:
        nonlocal running
        running += 1
        await release.wait()

    async with echo_server(hold, **settings) as (server, stub, _), channel_to(server.port) as channel:
        held = [asyncio.ensure_future(stub.EmbedTexts(request_)) for _ in range(2)]
        async with asyncio.timeout(60):
            while running < 2:  # noqa: ASYNC110 - it has no event of its own
                await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.EmbedTexts(request_)
        found = from_rpc_error(caught.value)
        assert (found.kind, found.retry_after_s) == (Kind.OVERLOADED, 1.0)
        assert next(iter(settings)) in found.message
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(service=EMBED.full_name), timeout=60)
        release.set()
        await asyncio.gather(*held)
        await embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts(request_, timeout=60)
