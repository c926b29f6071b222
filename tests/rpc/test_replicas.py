"""The gateway's choice between replicas: the least loaded one that serves, found by list or by name."""

import asyncio
import contextlib
import socket

import pytest

from regionsearch.rpc.calls import CallPolicy, acall
from regionsearch.rpc.channels import ChannelConfig
from regionsearch.rpc.replicas import ReplicaChannel, open_replicas
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from tests.runtime.conftest import EMBED, echo_server
from tests.stack import free_port
from tests.waiting import until

REQUEST = embed_pb2.EmbedTextsRequest(texts=["a"])
CONFIG = ChannelConfig(service=EMBED.full_name)


@contextlib.asynccontextmanager
async def replicas(count, behave):
    """Servers, and a stub for all of them once each has answered."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            (await stack.enter_async_context(echo_server(lambda r, c, n=n: behave(n))))[0]
            for n in range(count)
        ]
        target = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        channel = await stack.enter_async_context(open_replicas(target, CONFIG))
        await until(lambda: all(one.ready for one in channel._replicas.values()))
        yield servers, embed_pb2_grpc.EmbedServiceStub(channel)


async def test_a_slow_replica_gets_fewer_calls():
    counts = [0, 0]
    calls, enough = iter(range(40)), asyncio.Event()

    async def work(number):
        counts[number] += 1
        if number == 1:
            await enough.wait()

    async with replicas(2, work) as (_, stub):

        async def caller():
            for _ in calls:
                await acall(stub.EmbedTexts, REQUEST)
            enough.set()

        await asyncio.gather(*(caller() for _ in range(4)))
    assert sum(counts) == 40
    assert counts[1] <= 2, "more than half of what is in progress"


async def test_calls_at_once_are_spread_evenly():
    counts = [0, 0, 0]
    together = asyncio.Event()

    async def work(number):
        counts[number] += 1
        if sum(counts) == 9:
            together.set()
        await together.wait()

    async with replicas(3, work) as (_, stub):
        await asyncio.gather(*(acall(stub.EmbedTexts, REQUEST) for _ in range(9)))
    assert counts == [3, 3, 3]


async def test_a_replica_that_does_not_serve_gets_no_calls():
    counts = [0, 0]

    async def work(number):
        counts[number] += 1

    async with replicas(2, work) as (servers, stub):
        servers[0].health.set_not_serving("told to")
        async with asyncio.timeout(60):  # the channel has heard of it when the other one gets all calls
            while counts != [0, 10]:
                counts[:] = [0, 0]
                for _ in range(10):
                    await acall(stub.EmbedTexts, REQUEST)


async def test_a_name_is_followed(monkeypatch):
    """Replicas come and go behind it; a call in progress on one that went is answered."""
    port, addresses, counts = free_port(), ["127.0.0.1"], [0, 0]
    finish = asyncio.Event()

    async def look_up(host, port, **_):
        assert host == "embedder.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, int(port))) for ip in addresses]

    async def first(request, context):
        counts[0] += 1
        await finish.wait()

    async def second(request, context):
        counts[1] += 1

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    monkeypatch.setattr("regionsearch.rpc.replicas.RESOLVE_S", 0.05)
    async with (
        echo_server(first, port=port),
        echo_server(second, port=port, host="127.0.0.2"),
        open_replicas(f"dns:///embedder.test:{port}", CONFIG) as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        waiting = asyncio.create_task(acall(stub.EmbedTexts, REQUEST))
        await until(lambda: counts[0])
        addresses[:] = ["127.0.0.2"]
        async with asyncio.timeout(60):
            while not counts[1]:
                await asyncio.sleep(0.06)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(acall(stub.EmbedTexts, REQUEST), 0.2)
        for _ in range(5):
            await acall(stub.EmbedTexts, REQUEST, CallPolicy(unavailable_s=5))
        finish.set()
        await waiting
    assert counts[1] >= 6


async def test_targets_that_grpc_has_to_resolve_are_left_to_it():
    for target in ("unix:/tmp/s", "dns://127.0.0.1:5/embedder:1", "ipv4:127.0.0.1:1,127.0.0.2:1"):
        async with open_replicas(target, CONFIG) as channel:
            assert not isinstance(channel, ReplicaChannel)
    with pytest.raises(ValueError, match="host:port"):
        open_replicas("nowhere", CONFIG)
