"""CANCELLED is tried again where a server said it of one request, and never where the caller did."""

import asyncio
import contextlib

import grpc
import pytest

from regionsearch.rpc.calls import CallPolicy, acall
from regionsearch.rpc.channels import ChannelConfig, open_aio_channel, service_config
from regionsearch.rpc.replicas import open_replicas
from regionsearch.v1 import (
    embed_pb2,
    embed_pb2_grpc,
    region_search_pb2,
    search_pb2,
    segment_pb2,
    segment_pb2_grpc,
)
from services.runtime.server import serving
from tests.runtime.conftest import EchoSettings, echo_server
from tests.waiting import until

REQUEST = embed_pb2.EmbedTextsRequest(texts=["a"])
SEGMENT = segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]


@pytest.mark.parametrize("opening", [open_aio_channel, open_replicas])
@pytest.mark.parametrize("way", ["cancel", "deadline"])
async def test_a_caller_who_leaves_is_not_called_back(way, opening):
    calls = 0

    async def wait_the_first_time(request, context):
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()

    async with (
        echo_server(wait_the_first_time) as (server, _, servicer),
        opening(f"127.0.0.1:{server.port}", ChannelConfig()) as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        policy = CallPolicy(timeout_s=2.0 if way == "deadline" else 60.0)
        first = asyncio.create_task(acall(stub.EmbedTexts, REQUEST, policy))
        await until(lambda: calls)
        if way == "cancel":
            first.cancel()
        await asyncio.wait_for(servicer.cancelled.wait(), 60)
        await asyncio.sleep(1)  # longer than the first pauses between tries
        await stub.EmbedTexts(REQUEST, timeout=60)
        await asyncio.wait([first])
    assert calls == 2


@pytest.mark.parametrize("answered", [0, 1])
async def test_a_stream_is_not_retried(answered):
    """gRPC may lose a request when it sends a stream again; it may do so with no method that takes one."""
    streams = []

    class Dropping(segment_pb2_grpc.SegmentServiceServicer):
        async def SegmentStream(self, request_iterator, context):
            keys = []
            streams.append(keys)
            async for request in request_iterator:
                keys.append(request.key)
                if len(keys) > answered:
                    await context.abort(grpc.StatusCode.CANCELLED)
                yield segment_pb2.SegmentStreamResponse(key=request.key)

    @contextlib.asynccontextmanager
    async def lifespan(server):
        server.add(segment_pb2_grpc.add_SegmentServiceServicer_to_server, Dropping())
        yield

    async with (
        serving(EchoSettings(), [SEGMENT], lifespan) as server,
        open_aio_channel(f"127.0.0.1:{server.port}", ChannelConfig()) as channel,
    ):
        stub = segment_pb2_grpc.SegmentServiceStub(channel)

        call = stub.SegmentStream(timeout=60)
        for key in "ab"[:answered]:
            await call.write(segment_pb2.SegmentStreamRequest(key=key))
            assert (await call.read()).key == key
        await call.write(segment_pb2.SegmentStreamRequest(key="last"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert len(streams) == 1


def test_no_stream_of_requests_is_retried():
    services = (
        service
        for file in (embed_pb2, search_pb2, segment_pb2, region_search_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    )
    streams = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if method.client_streaming
    ]
    retried, others = service_config()["methodConfig"]
    assert "retryPolicy" in retried
    assert "retryPolicy" not in others
    assert sorted(others["name"], key=str) == sorted(streams, key=str)
