"""A simulation of gateways, segmenters and embedders in virtual time.

Batching, priorities, fairness, admission, the choice of a replica and retries are the program's own objects;
only devices and the gateway's CPU are models: a batch takes `batch_s` plus `item_s` for each item, a request
occupies its gateway's CPU for its measured time. Network, decoding and the searcher are not simulated.
The same seed gives the same figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.fleet.virtual_time import virtual_time
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import Backoff, CallPolicy, caller, calling_for, deadline
from regionsearch.rpc.replicas import least_loaded
from services.runtime.batch import BatchSettings, BatchSlice, Priority
from services.runtime.batcher import Batcher
from services.runtime.fair import FairSlots, Shares

POLICY = CallPolicy(unavailable_s=60)
IMAGE_TIMEOUT_S, QUERY_TIMEOUT_S = 300.0, 30.0


@dataclass(frozen=True)
class Device:
    """How long a batch takes.

    Attributes:
        batch_s: Seconds of any batch.
        item_s: Seconds of each item, on top.
        max_batch: Setting `batching.max_batch`.
    """

    batch_s: float
    item_s: float
    max_batch: int = 64

    @property
    def items_per_s(self) -> float:
        """Of full batches."""
        return self.max_batch / (self.batch_s + self.item_s * self.max_batch)


@dataclass(frozen=True)
class Fleet:
    """What serves. The times are those of the pocket models on two CPU cores, see benchmarks/RESULTS.md.

    Attributes:
        segmenters: Number of workers, one device each.
        embedders: Likewise.
        gateways: Number of gateways.
        segmenter: Its items are prompts, after the encoder.
        embedder: Its items are regions, images and phrases.
        prompts: Items of an image on its segmenter.
        regions: Regions of an image; on its embedder that and the whole image.
        in_work: Setting `limits.max_images_in_work` of each gateway.
        waiting: Setting `limits.max_images_waiting` of each.
        image_cpu_s: CPU time that an image takes of its gateway.
        query_cpu_s: CPU time that a query takes of its gateway.
    """

    segmenters: int = 1
    embedders: int = 1
    gateways: int = 1
    segmenter: Device = Device(0.05, 0.0093, 32)
    embedder: Device = Device(0.005, 0.0019)
    prompts: int = 27
    regions: int = 24
    in_work: int = 16
    waiting: int = 512
    image_cpu_s: float = 0.0045
    query_cpu_s: float = 0.002


@dataclass(frozen=True)
class Load:
    """What is asked, and what happens meanwhile.

    Attributes:
        seconds: How long.
        images_per_s: Images that arrive at random times; 0 has `clients` send one after the other.
        queries_per_s: Queries by words that arrive at random times.
        clients: Importers that wait for each image.
        burst: From when, until when and by what factor more images arrive.
        lost_at: When one worker of each kind is lost, with the calls on it.
        scale_every_s: How often a stage whose queues hold its callers over `queue_target_s` grows by half.
        start_s: Time from that decision until the new workers serve.
    """

    seconds: float
    images_per_s: float = 0.0
    queries_per_s: float = 0.0
    clients: int = 0
    burst: tuple[float, float, float] | None = None
    lost_at: float | None = None
    scale_every_s: float | None = None
    start_s: float = 90.0
    queue_target_s: float = 0.25


@dataclass
class Outcome:
    """What happened. Latencies in seconds, of those that were answered."""

    images: list[float] = field(default_factory=list)
    queries: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)  # times at which images were done
    failed: dict[str, int] = field(default_factory=dict)
    device_s: dict[str, float] = field(default_factory=dict)  # that devices worked, by stage
    held_s: dict[str, float] = field(default_factory=dict)  # that they were there
    workers: dict[str, int] = field(default_factory=dict)  # in the end

    def rate(self, warm_s: float) -> float:
        """Images a second after `warm_s`."""
        late = [when for when in self.finished if when > warm_s]
        return (len(late) - 1) / (late[-1] - late[0]) if len(late) > 1 else math.nan


class Worker:
    """A service with its batcher on one device."""

    def __init__(self, stage: Stage) -> None:
        self.in_progress = 0
        self.ready = True
        self.since = stage.now()
        self._calls: dict[asyncio.Task[None], None] = {}  # in their order, unlike a set
        settings = BatchSettings(max_batch=stage.device.max_batch, max_queue=stage.max_queue)
        self.batcher: Batcher[None, None] = Batcher(stage.name, settings, device=[stage.work])

    async def call(self, items: int, priority: Priority) -> None:
        """One call, of any number of items."""
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = None
        self.in_progress += 1
        try:
            await self.batcher.submit(None, items, priority=priority)
        except asyncio.CancelledError:
            if self.ready:
                raise
            task.uncancel()
            raise RegionSearchError(Kind.UNAVAILABLE, "the node is lost") from None
        finally:
            self.in_progress -= 1
            del self._calls[task]

    def lose(self) -> None:
        """The node is gone, and every call on it fails."""
        self.ready = False
        for call in list(self._calls):
            call.cancel()


class Stage:
    """All workers of a kind, and how callers reach them."""

    def __init__(self, name: str, device: Device, workers: int, max_queue: int) -> None:
        self.name, self.device, self.max_queue = name, device, max_queue
        self.now = asyncio.get_running_loop().time
        self.busy_s = self.gone_s = 0.0
        self.workers = [Worker(self) for _ in range(workers)]

    def work(self, parts: Sequence[BatchSlice[None]]) -> float:
        """Seconds that a batch takes."""
        seconds = self.device.batch_s + self.device.item_s * sum(part.size for part in parts)
        self.busy_s += seconds
        return seconds

    async def call(self, items: int, priority: Priority) -> None:
        """As the gateway calls: the least loaded replica, and another try where it is full or gone."""
        backoff = Backoff(POLICY)
        while True:
            try:
                return await least_loaded(self.workers).call(items, priority)
            except RegionSearchError as error:
                await asyncio.sleep(backoff.next_delay(error))

    def lose_one(self) -> None:
        """The first node is lost."""
        lost = self.workers.pop(0)
        self.gone_s += self.now() - lost.since
        lost.lose()

    async def scale(self, load: Load) -> None:
        """An autoscaler: grows while what waits would keep the workers busy for longer than the target."""
        assert load.scale_every_s is not None
        while True:
            await asyncio.sleep(load.scale_every_s)
            waiting = sum(worker.batcher.waiting for worker in self.workers)
            if waiting / self.device.items_per_s / len(self.workers) > load.queue_target_s:
                await asyncio.sleep(load.start_s)
                self.workers += [Worker(self) for _ in range(-(-len(self.workers) // 2))]

    @property
    def held_s(self) -> float:
        """Device-seconds that were paid for."""
        return self.gone_s + sum(self.now() - worker.since for worker in self.workers)


class Gateway:
    """Admission, slots and CPU of one gateway."""

    def __init__(self, fleet: Fleet) -> None:
        self.slots = FairSlots(fleet.in_work)
        self.admitted = Shares(fleet.in_work + fleet.waiting)
        self._cpu = asyncio.Lock()

    async def compute(self, seconds: float) -> None:
        """Waits for its CPU and uses it."""
        async with self._cpu:
            await asyncio.sleep(seconds)

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """As `gateway.ingest.Ingester.admit` does."""
        who = caller()
        if not self.admitted.fits(who, 1):
            raise RegionSearchError(Kind.OVERLOADED, "too many images are on their way in", retry_after_s=1.0)
        self.admitted.add(who, 1)
        try:
            yield
        finally:
            self.admitted.add(who, -1)


class Simulation:
    """One run. Make it and await :meth:`run` in virtual time."""

    def __init__(self, fleet: Fleet, load: Load, seed: int) -> None:
        self._fleet, self._load = fleet, load
        self._random = random.Random(seed)
        self._now = asyncio.get_running_loop().time
        self._gateways = [Gateway(fleet) for _ in range(fleet.gateways)]
        self._segment = Stage("segmenter", fleet.segmenter, fleet.segmenters, 100_000)
        self._embed = Stage("embedder", fleet.embedder, fleet.embedders, BatchSettings().max_queue)
        self._outcome = Outcome()
        self._sent = 0

    async def run(self) -> Outcome:
        """Until the load ends, without waiting for what is then in progress."""
        load, outcome = self._load, self._outcome
        tasks = [asyncio.create_task(self._import()) for _ in range(load.clients)]
        if load.images_per_s:
            tasks.append(asyncio.create_task(self._arrivals(self._image_rate, self._image)))
        if load.queries_per_s:
            tasks.append(asyncio.create_task(self._arrivals(lambda: load.queries_per_s, self._query)))
        stages = (self._segment, self._embed)
        if load.scale_every_s is not None:
            tasks += [asyncio.create_task(stage.scale(load)) for stage in stages]
        if load.lost_at is not None:
            for stage in stages:
                asyncio.get_running_loop().call_at(load.lost_at, stage.lose_one)
        await asyncio.sleep(load.seconds)
        for stage in stages:
            outcome.device_s[stage.name], outcome.held_s[stage.name] = stage.busy_s, stage.held_s
            outcome.workers[stage.name] = len(stage.workers)
        return outcome

    def _image_rate(self) -> float:
        start, end, factor = self._load.burst or (0.0, 0.0, 1.0)
        return self._load.images_per_s * (factor if start <= self._now() < end else 1.0)

    async def _arrivals(self, rate: Callable[[], float], ask: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._random.expovariate(rate()))
                group.create_task(ask())  # type: ignore[arg-type]  # a coroutine

    async def _import(self) -> None:
        while True:
            await self._image()

    def _next_gateway(self) -> Gateway:
        self._sent += 1
        return self._gateways[self._sent % len(self._gateways)]

    async def _image(self) -> None:
        gateway = self._next_gateway()
        fleet, begin = self._fleet, self._now()
        try:
            with calling_for("importer"), gateway.admit():
                await gateway.compute(fleet.image_cpu_s)
                async with gateway.slots.slot():
                    with deadline(IMAGE_TIMEOUT_S):
                        await self._segment.call(fleet.prompts, Priority.BULK)
                        await self._embed.call(1 + fleet.regions, Priority.BULK)
        except RegionSearchError as error:
            self._fail("image", error)
        else:
            self._outcome.images.append(self._now() - begin)
            self._outcome.finished.append(self._now())

    async def _query(self) -> None:
        begin = self._now()
        try:
            with calling_for("user"), deadline(QUERY_TIMEOUT_S):
                await self._next_gateway().compute(self._fleet.query_cpu_s)
                await self._embed.call(1, Priority.INTERACTIVE)
        except RegionSearchError as error:
            self._fail("query", error)
        else:
            self._outcome.queries.append(self._now() - begin)

    def _fail(self, what: str, error: RegionSearchError) -> None:
        key = f"{what}: {error.kind.value}"
        self._outcome.failed[key] = self._outcome.failed.get(key, 0) + 1


def simulate(fleet: Fleet, load: Load, seed: int = 0) -> Outcome:
    """Runs a load on a fleet in virtual time; the same seed gives the same outcome."""
    state = random.getstate()
    random.seed(seed)  # of retries and of ties between replicas
    try:
        with virtual_time() as runner:

            async def run() -> Outcome:
                return await Simulation(fleet, load, seed).run()

            return runner.run(run())
    finally:
        random.setstate(state)
