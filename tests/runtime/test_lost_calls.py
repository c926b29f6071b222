"""Handlers whose work is cancelled, but not by their caller: the caller gets an answer at once."""

import asyncio
import contextlib

import grpc
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import segment_pb2, segment_pb2_grpc
from services.runtime import metrics
from services.runtime.server import Server, serving
from tests.runtime.conftest import EMBED, REQUEST, EchoSettings, echo_server

SEGMENT = segment_pb2.DESCRIPTOR.services_by_name["SegmentService"]
ANSWER_S = 20  # a call that is never answered waits for its deadline


async def cancelled_future(*_: object) -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def test_a_cancelled_future_inside_a_handler_is_an_internal_error():
    async with echo_server(cancelled_future) as (_, stub, _):
        failed = metrics.handled(EMBED.full_name, "EmbedTexts", "INTERNAL")
        before = failed._value.get()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.EmbedTexts(REQUEST, timeout=ANSWER_S, metadata=(("x-request-id", "r-8"),))
    typed = from_rpc_error(error.value)
    assert typed.kind is Kind.INTERNAL
    assert "r-8" in typed.message
    assert failed._value.get() == before + 1


async def test_a_cancelled_future_in_the_middle_of_a_stream_is_an_internal_error():
    class Streams(segment_pb2_grpc.SegmentServiceServicer):
        async def SegmentStream(self, request_iterator, context):
            yield segment_pb2.SegmentStreamResponse(key="first")
            await cancelled_future()

    @contextlib.asynccontextmanager
    async def lifespan(server: Server):
        server.add(segment_pb2_grpc.add_SegmentServiceServicer_to_server, Streams())
        yield

    async with (
        serving(EchoSettings(), [SEGMENT], lifespan) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call = segment_pb2_grpc.SegmentServiceStub(channel).SegmentStream(timeout=ANSWER_S)
        assert (await call.read()).key == "first"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert error.value.code() is grpc.StatusCode.INTERNAL


async def test_a_client_that_leaves_is_not_logged_as_an_error():
    entered = asyncio.Event()

    async def wait(request, context):
        entered.set()
        await asyncio.Event().wait()

    async with echo_server(wait) as (_, stub, servicer):
        gone = metrics.handled(EMBED.full_name, "EmbedTexts", "CANCELLED")
        before = gone._value.get()
        call = stub.EmbedTexts(REQUEST, timeout=ANSWER_S)
        await entered.wait()
        call.cancel()
        await asyncio.wait_for(servicer.cancelled.wait(), ANSWER_S)
        while gone._value.get() == before:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    assert gone._value.get() == before + 1
