"""The serving core: what the batcher, the life cycle and gRPC cost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from benchmarks.harness import Case, Measure, Pair, constant
from regionsearch.errors import RegionSearchError
from regionsearch.rpc.calls import CallPolicy, acall
from regionsearch.rpc.channels import open_aio_channel
from regionsearch.v1 import embed_pb2, embed_pb2_grpc
from services.runtime.batcher import Batcher, BatchSettings
from services.runtime.server import Server, serving
from services.runtime.settings import ServiceSettings

DEVICE_S, FINISH_S = 0.008, 0.0005  # of a batch, in the fake model
MAX_BATCH = 64
CALLERS = 512
CAPACITY = 20  # calls a second of the model that is flooded


@contextlib.contextmanager
def on_loop(make: Callable[[], contextlib.AbstractAsyncContextManager[Any]]) -> Iterator[Callable[..., Any]]:
    """Runs an asynchronous context around a measurement; yields a function that runs coroutines inside it."""
    with asyncio.Runner() as runner:
        context = make()
        value = runner.run(context.__aenter__())
        try:
            yield lambda work: runner.run(work(value))
        finally:
            runner.run(context.__aexit__(None, None, None))


def prepare(payload: object) -> object:
    """Stands for decoding; costs nothing, so that what is measured is the way through the threads."""
    return payload


def device(parts: Any) -> Any:
    """Stands for a model whose batches take the same time, full or not."""
    time.sleep(DEVICE_S)
    return parts


def finish(parts: Any) -> list[object]:
    """Stands for the copy from the device."""
    time.sleep(FINISH_S)
    return [part.prepared for part in parts]


@contextlib.asynccontextmanager
async def fake_batcher() -> AsyncIterator[Batcher[int, object]]:
    batcher: Batcher[int, object] = Batcher(
        "benchmark", BatchSettings(max_batch=MAX_BATCH), prepare=prepare, device=[device], finish=finish
    )
    yield batcher
    await batcher.close()


async def drive(call: Callable[[], Awaitable[object]], callers: int, calls: int) -> float:
    """Closed loop: `callers` that each make one call after the other; returns calls per second."""

    async def caller() -> None:
        for _ in range(calls // callers):
            await call()

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return calls // callers * callers / (time.perf_counter() - begin)


async def median_ms(call: Callable[[], Awaitable[object]], count: int = 50) -> float:
    """Median latency of one call at a time."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        await call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


@contextlib.contextmanager
def rate() -> Iterator[Pair]:
    with on_loop(fake_batcher) as run:
        yield Pair(
            lambda: run(lambda batcher: drive(lambda: batcher.submit(1, 1), CALLERS, 40 * CALLERS)),
            constant(MAX_BATCH / DEVICE_S),
        )


@contextlib.contextmanager
def cpu_per_item() -> Iterator[Pair]:
    def ours() -> float:
        begin = time.process_time()
        run(lambda batcher: drive(lambda: batcher.submit(1, 1), CALLERS, 40 * CALLERS))
        return (time.process_time() - begin) / (40 * CALLERS) * 1e6

    with on_loop(fake_batcher) as run:
        yield Pair(ours)


def plain_call() -> float:
    """The fake model's own time for one item, in ms, without anything around it."""
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        prepare(0)
        device(0)
        time.sleep(FINISH_S)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


class EchoSettings(ServiceSettings):
    """Of the service that does nothing but go through the batcher."""

    process = "benchmark"
    drain_delay_s: float = 0


@contextlib.asynccontextmanager
async def echo_service(
    make_batcher: Callable[[], contextlib.AbstractAsyncContextManager[Batcher[int, object]]] = fake_batcher,
) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """A real server on the loopback whose handler is the fake model; yields a call of it."""

    class Servicer(embed_pb2_grpc.EmbedServiceServicer):
        async def GetModel(self, request: Any, context: Any) -> embed_pb2.EmbedServiceGetModelResponse:  # noqa: N802
            await batcher.submit(1, 1)
            return embed_pb2.EmbedServiceGetModelResponse()

    @contextlib.asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        server.add(embed_pb2_grpc.add_EmbedServiceServicer_to_server, Servicer())  # type: ignore[abstract]
        yield

    service = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]
    async with (
        make_batcher() as batcher,
        serving(EchoSettings(), [service], lifespan) as server,
        open_aio_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        policy = CallPolicy(overload_attempts=1)
        yield lambda: acall(stub.GetModel, embed_pb2.EmbedServiceGetModelRequest(), policy)


def added(make: Callable[[], contextlib.AbstractAsyncContextManager[Any]], call: Any) -> Any:
    """A case's preparation: what one idle call takes beyond the fake model's own time, against 3 ms."""

    @contextlib.contextmanager
    def prepared() -> Iterator[Pair]:
        with on_loop(make) as run:
            ours: Measure = lambda: run(lambda value: median_ms(lambda: call(value))) - plain_call()  # noqa: E731
            yield Pair(ours, constant(3.0))

    return prepared


def slow_device(parts: Any) -> Any:
    """Stands for a large model: CAPACITY calls a second."""
    time.sleep(1 / CAPACITY)
    return parts


@contextlib.asynccontextmanager
async def slow_batcher() -> AsyncIterator[Batcher[int, object]]:
    settings = BatchSettings(max_batch=1, max_queue=8)
    batcher: Batcher[int, object] = Batcher("flood", settings, device=[slow_device], finish=finish)
    yield batcher
    await batcher.close()


async def flood(call: Callable[[], Awaitable[object]]) -> float:
    """Calls at 20 times the capacity, open loop; returns the 99th percentile of refusals in ms."""
    times = []

    async def caller() -> None:
        begin = time.perf_counter()
        try:
            await call()
        except RegionSearchError:
            times.append(time.perf_counter() - begin)

    async with asyncio.TaskGroup() as tasks:
        begin = time.perf_counter()
        for number in range(40 * CAPACITY):
            await asyncio.sleep(begin + number / (20 * CAPACITY) - time.perf_counter())
            tasks.create_task(caller())
    return statistics.quantiles(times, n=100)[98] * 1e3


@contextlib.contextmanager
def refusals() -> Iterator[Pair]:
    with on_loop(functools.partial(echo_service, slow_batcher)) as run:
        yield Pair(lambda: run(flood), constant(50.0))


def cases() -> list[Case]:
    return [
        Case("batcher: rate against the ideal, one item a call", "items/s", rate, "higher", 0.95),
        Case("batcher: CPU time per item", "µs", cpu_per_item),
        Case(
            "batcher: latency added to one idle call, against 3 ms",
            "ms",
            added(fake_batcher, lambda batcher: batcher.submit(1, 1)),
            target=1.0,
        ),
        Case(
            "gRPC: latency added to one idle call, against 3 ms",
            "ms",
            added(echo_service, lambda call: call()),
            target=1.0,
        ),
        Case(
            "gRPC: refusals in a flood of 20 times the capacity, 99th percentile, against 50 ms",
            "ms",
            refusals,
            target=1.0,
        ),
    ]
