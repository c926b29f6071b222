"""What batches so far tell about the time that work takes, and what is admitted by it."""

import asyncio
from collections import Counter

import pytest

from benchmarks.fleet.virtual_time import virtual_time
from regionsearch.errors import RegionSearchError
from services.runtime.batch import BatchSettings
from services.runtime.batch_times import BatchTimes
from services.runtime.batcher import Batcher

MAX_BATCH = 8


def learned(*batches: tuple[int, float]) -> BatchTimes:
    times = BatchTimes()
    for items, seconds in batches:
        times.learn(items, seconds)
    return times


def test_before_the_first_batch_nothing_is_known() -> None:
    assert BatchTimes().mean == BatchTimes().expect(1000, 8) == 0


def test_while_only_single_items_were_seen_time_is_taken_to_grow_with_the_items() -> None:
    times = learned(*[(1, 0.01)] * 50)
    assert times.mean == pytest.approx(0.01)
    assert times.expect(800, 8) == pytest.approx(8.0)


def test_fixed_and_growing_costs_are_told_apart_once_sizes_differ() -> None:
    sizes = (1, 2, 1, 5, 3, 1, 2, 4) * 5
    assert learned(*((n, 0.05 + 0.001 * n) for n in sizes)).expect(64, 64) == pytest.approx(0.114, rel=0.1)
    assert learned(*((n, 0.01 * n) for n in sizes)).expect(64, 64) == pytest.approx(0.64)
    assert learned(*((n, 0.05) for n in sizes)).expect(64, 64) == pytest.approx(0.05, rel=0.1)


def test_a_device_that_became_slower_is_believed_within_some_batches() -> None:
    times = learned(*[(8, 0.1)] * 100, *[(8, 1.0)] * 30)
    assert times.expect(8, 8) == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize("noise", [(1, 0.02, 2, 0.001), (1, 0.001, 2, 0.9), (3, 0.0, 1, 0.0)])
def test_no_cost_is_ever_below_nothing(noise: tuple[int, float, int, float]) -> None:
    times = learned(noise[:2], noise[2:])
    assert times.expect(1, 1) >= 0
    assert times.expect(1, 1_000_000) >= 0


def test_a_burst_of_twenty_times_the_capacity_is_refused_at_once_rather_than_by_the_deadline() -> None:
    """Single items have been seen only, and a batch takes as long as its items together."""
    ended = Counter[str]()
    waits: list[float] = []

    async def run() -> None:
        settings = BatchSettings(max_batch=MAX_BATCH, max_queue=100_000)
        batcher: Batcher[None, None] = Batcher(
            "burst", settings, device=[lambda parts: 0.01 * sum(part.size for part in parts)]
        )
        now = asyncio.get_running_loop().time
        for _ in range(5):
            await batcher.submit(None, 1)
        begin = now()

        async def call() -> None:
            try:
                await batcher.submit(None, 1, deadline=begin + 1.0)
                ended["answered"] += 1
            except RegionSearchError as error:
                ended[error.kind.name] += 1
                waits.extend([now() - begin] * (error.kind.name == "OVERLOADED"))

        await asyncio.gather(*(call() for _ in range(2000)))

    with virtual_time() as runner:
        runner.run(run())
    assert 100 - MAX_BATCH <= ended["answered"] <= 100
    assert ended["DEADLINE_EXCEEDED"] <= MAX_BATCH  # of the last batch, which ends after the deadline
    assert ended.total() == 2000
    assert max(waits) == 0.0
