"""Scaling out: what more workers and a second gateway add, and what one slow replica costs.

The devices are stand-ins that take a fixed time and sleep meanwhile: so a machine with two cores can show
what many machines with a GPU each would, as long as its own two are not the limit. Therefore a device takes
a second for an image, which is long, and the gateway's cost is measured as CPU time, which other processes
do not change much. Gateways and searcher are the real ones, and the images come in over HTTP.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc
import httpx
import numpy as np

from benchmarks.bench_gateway import sample_image, sender
from benchmarks.harness import Case, Pair, constant
from benchmarks.simulated_services import REGIONS, Processes
from regionsearch.rpc.channels import ChannelConfig, open_aio_channel
from regionsearch.rpc.replicas import open_replicas
from regionsearch.v1 import embed_pb2, embed_pb2_grpc

DEVICE_S = 1.0  # of an image on its segmenter, and again on its embedder
IN_WORK = 4  # images for each pair of workers: on each one that runs and one that waits
ROUNDS = 9  # images for each pair; the first and the last IN_WORK are not counted

CPU_IMAGES, CPU_QUERIES, CLIENTS = 96, 400, 8

REPLICA_S, CALLERS, THINK_S = 0.02, 8, 0.05
SETTLE_S, WATCH_S = 2.0, 10.0  # before latencies count, and while they do


@contextlib.contextmanager
def fleet(
    workers: int,
    gateways: int,
    segmenter: Mapping[str, object],
    embedder: Mapping[str, object],
    **settings: object,
) -> Iterator[tuple[Processes, list[str]]]:
    """As many segmenters as embedders, with settings of `StageSettings`, behind gateways with theirs.

    Yields the processes and the gateways' URLs.
    """
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        services = {
            "segmenter": processes.stand_in("segmenter", workers, **segmenter),
            "embedder": processes.stand_in("embedder", workers, **embedder),
            "searcher": processes.searcher(),
        }
        yield processes, [processes.gateway(**services, **settings) for _ in range(gateways)]


def one_by_one(device_s: float) -> tuple[dict[str, object], dict[str, object]]:
    """Settings of segmenters and embedders whose devices take so long for each image."""
    return (
        {"batch_s": device_s, "batching__max_batch": 1},
        {"batch_s": device_s, "batching__max_batch": 1 + REGIONS},
    )


def steady_rate(sends: Sequence[Callable[[bytes], object]], images: Sequence[bytes], in_work: int) -> float:
    """Images a second while the pipeline is full: between the first and the last `in_work` answers."""

    def send(number: int) -> float:
        sends[number % len(sends)](images[number])
        return time.perf_counter()

    with concurrent.futures.ThreadPoolExecutor(in_work) as pool:
        answered = sorted(pool.map(send, range(len(images))))
    return (len(images) - 2 * in_work) / (answered[-in_work - 1] - answered[in_work - 1])


def efficiency(workers: int, gateways: int) -> Callable[[], contextlib.AbstractContextManager[Pair]]:
    """Preparation: images a second through the gateways, against the rate of the devices alone."""

    @contextlib.contextmanager
    def prepared() -> Iterator[Pair]:
        numbers = itertools.count()
        in_work = IN_WORK * workers
        with (
            fleet(workers, gateways, *one_by_one(DEVICE_S), limits__max_images_in_work=in_work) as (_, urls),
            httpx.Client(timeout=300) as http,
        ):
            sends = [sender(http, url) for url in urls]

            def ours() -> float:
                images = [sample_image(next(numbers)) for _ in range((2 * IN_WORK + ROUNDS) * workers)]
                return steady_rate(sends, images, in_work)

            yield Pair(ours, constant(workers / DEVICE_S))

    return prepared


@contextlib.contextmanager
def cpu_per_image() -> Iterator[Pair]:
    """The gateway's CPU time an image."""
    numbers = itertools.count()
    with fleet(4, 1, *one_by_one(0.0)) as (processes, (url,)), httpx.Client(timeout=300) as http:

        def ours() -> float:
            images = [sample_image(next(numbers)) for _ in range(CPU_IMAGES)]
            return _cpu_ms(processes, sender(http, url), images)

        yield Pair(ours)


@contextlib.contextmanager
def cpu_per_query() -> Iterator[Pair]:
    """The gateway's CPU time a search by words, with a page of 20 hits."""
    numbers = itertools.count()
    with fleet(1, 1, *one_by_one(0.0)) as (processes, (url,)), httpx.Client(timeout=300) as http:
        for number in range(4):
            sender(http, url)(sample_image(number))

        def search(words: str) -> None:
            query = {"query": {"text": words}, "level": "region", "page_size": 20}
            answer = http.post(f"{url}/v1/collections/default/search", json=query)
            assert len(answer.json()["hits"]) == 20, answer.text

        def ours() -> float:
            return _cpu_ms(processes, search, [f"thing {next(numbers)}" for _ in range(CPU_QUERIES)])

        yield Pair(ours)


def _cpu_ms(processes: Processes, call: Callable[..., object], arguments: Sequence[object]) -> float:
    """CPU milliseconds of the gateway for each call, by CLIENTS callers."""
    before = processes.cpu_s("gateway")
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(call, arguments))
    return (processes.cpu_s("gateway") - before) / len(arguments) * 1e3


def p99(slow_s: float) -> Callable[[], contextlib.AbstractContextManager[Pair]]:
    """Preparation: p99 of calls over four replicas, the last of them slow, against round robin."""

    @contextlib.contextmanager
    def prepared() -> Iterator[Pair]:
        with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
            alone = {"batching__max_batch": 8}  # the longest call
            fast = processes.stand_in("embedder", 3, item_s=REPLICA_S, **alone)
            slow = processes.stand_in("embedder", item_s=slow_s, **alone)
            targets = f"{fast},{slow}"
            config = ChannelConfig()
            yield Pair(
                lambda: asyncio.run(_p99(lambda: open_replicas(targets, config))),
                lambda: asyncio.run(_p99(lambda: open_aio_channel(targets, config))),
            )

    return prepared


async def _p99(channel_to: Callable[[], grpc.aio.Channel]) -> float:
    """Milliseconds; the callers pause between calls, one in five of which is eight times as long."""
    begin = time.perf_counter()
    seconds: list[float] = []

    async def caller(stub: embed_pb2_grpc.EmbedServiceAsyncStub, seed: int) -> None:
        draw = random.Random(seed)
        while (sent := time.perf_counter()) < begin + SETTLE_S + WATCH_S:
            await stub.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=["words"] * draw.choice((1, 1, 1, 1, 8))))
            if sent > begin + SETTLE_S:
                seconds.append(time.perf_counter() - sent)
            await asyncio.sleep(draw.expovariate(1 / THINK_S))

    async with channel_to() as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        await asyncio.gather(*(caller(stub, seed) for seed in range(CALLERS)))
    return float(np.percentile(seconds, 99) * 1e3)


def cases() -> list[Case]:
    """Efficiency of 1 to 16 workers of each kind, the gateway's cost, and the p99 next to a slow replica."""
    higher = functools.partial(Case, unit="images/s", better="higher", target=0.9, runs=2)
    return [
        *(
            higher(
                f"scaling: ingest, {workers} segmenters and embedders of 1 s, {gateways} gateway(s), against "
                "the devices",
                prepare=efficiency(workers, gateways),
                slow=True,
            )
            for workers, gateways in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (16, 2))
        ),
        Case("scaling: CPU of the gateway for an image", "ms", cpu_per_image, runs=3),
        Case("scaling: CPU of the gateway for a search by words", "ms", cpu_per_query, runs=3),
        Case(
            "scaling: p99, 4 replicas, one four times slower, least loaded against round robin",
            "ms",
            p99(4 * REPLICA_S),
            target=1.5,
            runs=3,
            slow=True,
        ),
        Case(
            "scaling: p99, 4 equal replicas, least loaded against round robin",
            "ms",
            p99(REPLICA_S),
            runs=3,
            slow=True,
        ),
    ]
