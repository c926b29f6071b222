"""The caller's side: targets, deadlines, patience with overload, balancing, order."""

import asyncio
import contextlib

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.rpc.calls import CallPolicy, acall, call, chunked, deadline, fan_out, remaining
from regionsearch.rpc.channels import ChannelConfig, open_aio_channel, open_channel, resolve_target
from regionsearch.rpc.replicas import open_replicas
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from tests.runtime.conftest import EMBED, echo_server
from tests.stack import free_port
from tests.waiting import until

REQUEST = embed_pb2.EmbedTextsRequest(texts=["a"])
CONFIG = ChannelConfig(service=EMBED.full_name)
both = pytest.mark.parametrize("opening", [open_aio_channel, open_replicas])


def test_addresses_become_grpc_targets():
    assert resolve_target("embedder:50052") == "dns:///embedder:50052"
    assert resolve_target("dns:///embedder:50052") == "dns:///embedder:50052"
    assert resolve_target("127.0.0.1:1, 127.0.0.2:2") == "ipv4:127.0.0.1:1,127.0.0.2:2"
    assert resolve_target("[::1]:1,[::1]:2") == "ipv6:[::1]:1,[::1]:2"
    for wrong in ("a,b", "127.0.0.1:1,:2", "127.0.0.1:1,[::1]:2"):
        with pytest.raises(ValueError, match=r"address|either"):
            resolve_target(wrong)


def test_deadlines_nest_and_the_nearest_wins():
    assert remaining() is None
    with deadline(1000):
        with deadline(10_000):
            assert remaining() <= 1000
        with deadline(100), deadline(None):
            assert remaining() <= 100
        assert remaining() > 500
    assert remaining() is None


def test_a_passed_deadline_makes_no_call():
    def method(request, **_):
        pytest.fail("must not be called")

    with deadline(-1), pytest.raises(RegionSearchError) as error:
        call(method, REQUEST)
    assert error.value.kind is Kind.DEADLINE_EXCEEDED


async def test_a_deadline_reaches_the_handler_and_what_it_calls():
    seen = []

    async def look(request, context):
        seen.append((context.time_remaining(), remaining()))

    async with echo_server(look) as (server, _, _), open_aio_channel(f"127.0.0.1:{server.port}") as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        with deadline(60):
            await acall(stub.EmbedTexts, REQUEST, CallPolicy(timeout_s=1000))
    assert 0 < seen[0][0] < 61  # not 1000; gRPC rounds a timeout up
    assert 0 < seen[0][1] < 61


@pytest.mark.parametrize("failures", [2, 10])
async def test_overload_is_retried_as_the_server_asks(failures):
    count = 0

    async def refuse(request, context):
        nonlocal count
        count += 1
        if count <= failures:
            raise overloaded("full", 0.01)

    policy = CallPolicy(overload_attempts=4)
    async with echo_server(refuse) as (server, _, _), open_aio_channel(f"127.0.0.1:{server.port}") as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        if failures == 2:
            await acall(stub.EmbedTexts, REQUEST, policy)
            assert count == 3
        else:
            with pytest.raises(RegionSearchError) as error:
                await acall(stub.EmbedTexts, REQUEST, policy)
            assert error.value.kind is Kind.OVERLOADED
            assert count == 4


async def test_a_pause_longer_than_the_deadline_is_not_slept():
    async def refuse(request, context):
        raise overloaded("full", 60)

    async with echo_server(refuse) as (server, _, _), open_aio_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(RegionSearchError) as error:
            await acall(
                embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts, REQUEST, CallPolicy(timeout_s=50)
            )
    assert error.value.retry_after_s == 60


@both
async def test_a_restart_of_the_only_replica_is_waited_for(opening):
    port = free_port()
    async with opening(f"127.0.0.1:{port}", CONFIG) as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        with pytest.raises(RegionSearchError) as error:
            await acall(stub.EmbedTexts, REQUEST)
        assert error.value.kind is Kind.UNAVAILABLE
        waiting = asyncio.create_task(acall(stub.EmbedTexts, REQUEST, CallPolicy(unavailable_s=60)))
        await asyncio.sleep(2)  # longer than the retries inside of gRPC
        assert not waiting.done()
        async with echo_server(port=port):
            assert len((await waiting).truncated) == 1


@both
async def test_a_call_that_a_stopping_server_drops_is_made_again(opening):
    calls = 0

    async def drop_the_first(request, context):
        nonlocal calls
        calls += 1
        if calls == 1:
            await context.abort(grpc.StatusCode.CANCELLED)

    async with (
        echo_server(drop_the_first) as (server, _, _),
        opening(f"127.0.0.1:{server.port}", CONFIG) as channel,
    ):
        answer = await acall(embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts, REQUEST)
    assert (calls, len(answer.truncated)) == (2, 1)


@both
async def test_the_wait_for_a_replica_ends(opening):
    async with opening(f"127.0.0.1:{free_port()}", CONFIG) as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        for policy in (CallPolicy(unavailable_s=0.5), CallPolicy(timeout_s=3.0, unavailable_s=60)):
            with pytest.raises(RegionSearchError) as error:
                await acall(stub.EmbedTexts, REQUEST, policy)
            assert error.value.kind in (Kind.UNAVAILABLE, Kind.DEADLINE_EXCEEDED)


async def test_threads_call_the_same_way_with_their_key():
    async with echo_server(api_keys=("secret",)) as (server, _, _):

        def work():
            with open_channel(f"127.0.0.1:{server.port}", CONFIG) as channel:
                stub = embed_pb2_grpc.EmbedServiceStub(channel)
                with pytest.raises(RegionSearchError) as error:
                    call(stub.EmbedTexts, REQUEST)
                assert error.value.kind is Kind.UNAUTHENTICATED
                return call(stub.EmbedTexts, REQUEST, CallPolicy(api_key="secret"))

        assert len((await asyncio.to_thread(work)).truncated) == 1


async def test_calls_go_round_healthy_replicas_only():
    counts = [0, 0]

    def counter(index):
        async def count(request, context):
            counts[index] += 1

        return count

    async with echo_server(counter(0)) as (one, _, _), echo_server(counter(1)) as (two, _, _):
        target = f"127.0.0.1:{one.port},127.0.0.1:{two.port}"
        async with open_aio_channel(target, CONFIG) as channel:
            stub = embed_pb2_grpc.EmbedServiceStub(channel)
            async with asyncio.timeout(60):  # both connections are up when both have answered
                while 0 in counts:
                    await acall(stub.EmbedTexts, REQUEST)
            counts[:] = [0, 0]
            for _ in range(20):
                await acall(stub.EmbedTexts, REQUEST)
            assert counts == [10, 10]
            one.health.set_not_serving("told to")
            async with asyncio.timeout(60):  # the channel has heard of it when the other one gets all calls
                while counts != [0, 10]:
                    counts[:] = [0, 0]
                    for _ in range(10):
                        await acall(stub.EmbedTexts, REQUEST)
            for _ in range(10):
                await acall(stub.EmbedTexts, REQUEST)
            assert counts == [0, 20]


@both
async def test_a_rolling_restart_loses_no_call(opening):
    done = 0
    answered = []  # by the servers that were there from the start, and by those that followed them
    stop = asyncio.Event()

    def working(index):
        answered.append(0)

        async def work(request, context):
            await asyncio.sleep(0.02)
            answered[index] += 1

        return work

    async with contextlib.AsyncExitStack() as stack:
        ports = [free_port(), free_port()]
        restarts = []
        for port in ports:
            replica = contextlib.AsyncExitStack()
            behave = working(len(answered))
            await replica.enter_async_context(echo_server(behave, port=port, drain_delay_s=0.3))
            restarts.append(replica)
        channel = await stack.enter_async_context(
            opening(",".join(f"127.0.0.1:{port}" for port in ports), CONFIG)
        )
        stub = embed_pb2_grpc.EmbedServiceStub(channel)

        async def caller():
            nonlocal done
            while not stop.is_set():
                await acall(stub.EmbedTexts, REQUEST, CallPolicy(timeout_s=60))
                done += 1

        callers = [asyncio.create_task(caller()) for _ in range(16)]
        await until(lambda: all(answered))
        for port, replica in zip(ports, restarts, strict=True):
            before = done
            await replica.aclose()
            await stack.enter_async_context(echo_server(working(len(answered)), port=port))
            await until(lambda: answered[-1])  # the channel has found the replica again
            assert done > before
        before = done
        await until(lambda: done > before + 100)
        stop.set()
        await asyncio.gather(*callers)  # raises if any call failed


@given(st.integers(0, 500), st.integers(1, 100))
def test_chunks_cover_everything_evenly(count, size):
    chunks = list(chunked(range(count), size))
    assert [item for chunk in chunks for item in chunk] == list(range(count))
    assert all(1 <= len(chunk) <= size for chunk in chunks)
    if chunks:
        assert max(map(len, chunks)) - min(map(len, chunks)) <= 1


async def test_fan_out_keeps_order_and_bounds_concurrency():
    active = peak = 0

    async def work(number):
        nonlocal active, peak
        active += 1
        peak = max(peak, active)
        await asyncio.sleep(0.001 * (20 - number))
        active -= 1
        return number

    assert await fan_out(work, list(range(20)), concurrency=4) == list(range(20))
    assert peak == 4


async def test_fan_out_cancels_the_others():
    cancelled = []

    async def work(number):
        if number == 3:
            raise overloaded("full", 1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    with pytest.raises(RegionSearchError):
        await fan_out(work, list(range(5)))
    assert sorted(cancelled) == [0, 1, 2, 4]


async def test_nobody_there_is_unavailable():
    async with open_aio_channel("127.0.0.1:1") as channel:
        with pytest.raises(RegionSearchError) as error:
            await acall(
                embed_pb2_grpc.EmbedServiceStub(channel).EmbedTexts, REQUEST, CallPolicy(timeout_s=30)
            )
    assert error.value.kind is Kind.UNAVAILABLE
