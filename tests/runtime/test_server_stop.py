"""A server stops in order: calls in flight end first, what cannot load or must not go on ends the process."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.server import Server, serving
from tests.runtime.conftest import (
    EMBED,
    REQUEST,
    EchoSettings,
    echo_server,
)


async def test_stopping_while_loading_ends_at_once():
    @contextlib.asynccontextmanager
    async def lifespan(server: Server):
        await asyncio.Event().wait()
        yield

    server = Server(EchoSettings(), [EMBED])
    life = asyncio.create_task(server.serve(lifespan))
    await asyncio.sleep(0.05)
    server.stop()
    assert await asyncio.wait_for(life, 60) == 0


async def test_a_lifespan_that_cannot_load_ends_with_code_1():
    @contextlib.asynccontextmanager
    async def lifespan(server: Server):
        raise RegionSearchError(Kind.FAILED_PRECONDITION, "weights are missing: pull them")
        yield

    assert await Server(EchoSettings(), [EMBED]).serve(lifespan) == 1
    with pytest.raises(RuntimeError, match="code 1"):
        async with serving(EchoSettings(), [EMBED], lifespan):
            pytest.fail("it must not serve")


async def test_calls_in_flight_end_before_the_server_does():
    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(request, context):
        begun.set()
        await release.wait()

    async with echo_server(wait) as (server, stub, _):
        call = stub.EmbedTexts(REQUEST)
        await begun.wait()
        server.stop()
        assert not server.health.serving
        await asyncio.sleep(0.2)  # past the drain delay: the server refuses new calls by now
        release.set()
        assert len((await call).truncated) == 2


async def test_a_call_that_outlasts_the_grace_is_cut():
    begun = asyncio.Event()

    async def hang(request, context):
        begun.set()
        await asyncio.Event().wait()

    async with echo_server(hang, grace_s=0.1) as (server, stub, servicer):
        call = asyncio.ensure_future(stub.EmbedTexts(REQUEST))
        await asyncio.wait_for(begun.wait(), 60)
        server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        await asyncio.wait_for(servicer.cancelled.wait(), 60)


async def test_fail_flips_health_and_ends_with_code_1():
    release = asyncio.Event()
    server_box: list[Server] = []

    @contextlib.asynccontextmanager
    async def lifespan(server: Server):
        server_box.append(server)
        yield
        release.set()

    server = Server(EchoSettings(), [EMBED])
    life = asyncio.create_task(server.serve(lifespan))
    await server.up()
    await asyncio.to_thread(server.fail, "the device is gone")
    assert await asyncio.wait_for(life, 60) == 1
    assert server.health.reason == "the device is gone"
    assert release.is_set()
