"""The batcher on its own: what it promises to callers."""

import asyncio
import itertools
import threading
import time

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import deadline as surrounding_deadline
from services.runtime import batcher as batcher_module
from services.runtime.batch import BatchSettings, Priority
from services.runtime.batcher import Batcher
from tests.runtime.batchers import Model, answer, batching, flat, held
from tests.waiting import until


async def test_one_request_is_answered():
    async with batching() as (batcher, model):
        assert flat(await batcher.submit("a", 3)) == answer("a", 3)
    assert model.batches == [[("a", 0, 3)]]


async def test_requests_share_batches_and_are_split_at_the_limit():
    async with batching() as (batcher, model):
        results = await asyncio.gather(*(batcher.submit(name, 5) for name in "abc"))
    assert [flat(result) for result in results] == [answer(name, 5) for name in "abc"]
    assert model.batches == [[("a", 0, 5), ("b", 0, 3)], [("b", 3, 5), ("c", 0, 5)]]


async def test_a_request_larger_than_a_batch_is_prepared_once():
    async with batching() as (batcher, model):
        assert flat(await batcher.submit("big", 30)) == answer("big", 30)
    assert [sum(b - a for _, a, b in batch) for batch in model.batches] == [8, 8, 8, 6]
    assert model.prepared == ["big"]


async def test_keys_do_not_mix():
    async with batching() as (batcher, model):
        await asyncio.gather(*(batcher.submit(f"{key}{i}", 2, key=key) for i in range(4) for key in "xy"))
    assert all(len({payload[0] for payload, _, _ in batch}) == 1 for batch in model.batches)


async def test_reproducible_batches_hold_one_request_and_are_split_at_the_limit():
    async with batching(reproducible=True) as (batcher, model):
        await asyncio.gather(*(batcher.submit(name, 10, key="same") for name in "abc"))
    assert sorted(model.batches) == [[(name, *part)] for name in "abc" for part in ((0, 8), (8, 10))]


async def test_a_busy_device_makes_batches_grow():
    async with batching() as (batcher, model):
        waiting = await held(batcher, model)
        waiting += [asyncio.create_task(batcher.submit(str(i), 1)) for i in range(8)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 8
        model.gate.set()
        await asyncio.gather(*waiting)
    assert len(model.batches) == 3


async def test_what_arrives_joins_the_batch_that_waits():
    async with batching() as (batcher, model):
        waiting = await held(batcher, model, items=1)
        for number in range(10):
            waiting.append(asyncio.create_task(batcher.submit(str(number), 1)))
            await asyncio.sleep(0.001)
        await until(lambda: len(model.prepared) == 9)
        assert batcher.waiting == 3
        model.gate.set()
        await asyncio.gather(*waiting)
    assert [len(batch) for batch in model.batches] == [1, 8, 3]


async def test_requests_of_other_keys_do_not_join():
    async with batching() as (batcher, model):
        waiting = await held(batcher, model, items=1)
        waiting += [asyncio.create_task(batcher.submit(name, 1, key=name)) for name in "abc"]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 3
        model.gate.set()
        await asyncio.gather(*waiting)
    assert [len(batch) for batch in model.batches] == [1, 1, 1, 1, 1]


async def test_an_idle_device_does_not_keep_a_lone_call_waiting():
    async with batching(max_delay_s=3600) as (batcher, _):
        assert await asyncio.wait_for(batcher.submit("alone", 1), 60)


async def test_quick_calls_wait_for_each_other():
    async with batching(max_delay_s=3600) as (batcher, model):
        await batcher.submit("alone", 1)
        first = asyncio.create_task(batcher.submit("first", 4))
        await asyncio.sleep(0.01)
        assert batcher.waiting == 4
        await asyncio.gather(first, batcher.submit("second", 4))  # with it the batch is full
    assert model.batches == [[("alone", 0, 1)], [("first", 0, 4), ("second", 0, 4)]]


async def test_a_quick_call_waits_no_longer_than_the_delay():
    async with batching(max_delay_s=0.3) as (batcher, _):
        for name in "abc":
            assert await asyncio.wait_for(batcher.submit(name, 1), 60)


async def test_interactive_waits_for_one_batch_only_and_other_priorities_are_not_starved():
    steps, order = threading.Semaphore(0), []

    def device(parts):
        order.append(parts[0].request.priority)
        steps.acquire()
        return [None] * len(parts)

    batcher = Batcher("turns", BatchSettings(max_batch=1, max_delay_s=0), device=[device])
    waiting = [
        asyncio.create_task(batcher.submit(None, 40, priority=priority))
        for priority in (Priority.BULK, Priority.STANDARD)
    ]
    await until(lambda: order)
    waiting += [asyncio.create_task(batcher.submit(None, 1)) for _ in range(60)]
    await asyncio.sleep(0)
    for ran in range(1, 61):  # one batch after the other, each time with all priorities ready
        await asyncio.sleep(0)  # the batcher hears of the place that the last one has left
        await until(
            lambda: (
                not any(
                    batcher._slots.free[priority] and batcher._queues.items(priority) for priority in Priority
                )
            )
        )
        steps.release()
        await until(lambda ran=ran: len(order) > ran)
    for _ in range(200):
        steps.release()
    await asyncio.gather(*waiting)
    await batcher.close()
    served = order[1:60]  # the first one ran before there was a choice
    assert served[0] is Priority.INTERACTIVE
    others = [place for place, priority in enumerate(served) if priority is not Priority.INTERACTIVE]
    assert [after - before for before, after in itertools.pairwise(others)] == [9] * (len(others) - 1)
    assert all(served[one] is not served[next_] for one, next_ in itertools.pairwise(others))
    assert len(order) == 140


async def test_escalate_moves_a_request_to_a_more_urgent_priority():
    async with batching() as (batcher, model):
        model.gate.clear()
        names = list("abcdefg")
        bulk = [asyncio.create_task(batcher.submit(name, 8, priority=Priority.BULK)) for name in names]
        await until(lambda: batcher.waiting == 5 * 8 and model.batches)  # two are in the pipeline
        batcher.escalate(names[6], Priority.INTERACTIVE)
        batcher.escalate(names[5], Priority.STANDARD)
        batcher.escalate(names[5], Priority.BULK)
        batcher.escalate("unknown", Priority.INTERACTIVE)
        await until(lambda: batcher.waiting == 3 * 8)  # each priority has its own slots
        model.gate.set()
        results = await asyncio.gather(*bulk)
    assert [flat(result) for result in results] == [answer(name, 8) for name in names]
    order = [batch[0][0] for batch in model.batches]
    assert order[0] == "a"
    assert order.index("g") < order.index("f") < order.index("c")


async def test_batches_do_not_pile_up_before_a_slow_finish_stage():
    finish, ran = threading.Semaphore(0), []

    def slow(raw):
        finish.acquire()
        return raw

    batcher = Batcher(
        "slow",
        BatchSettings(max_batch=1, max_delay_s=0),
        device=[lambda parts: ran.append(parts[0].request.priority) or [None]],
        finish=slow,
    )
    bulk = asyncio.create_task(batcher.submit(None, 20, priority=Priority.BULK))
    await until(lambda: len(ran) == 3)
    await asyncio.sleep(0.05)
    assert len(ran) == 3  # one is being finished, two are behind it
    click = asyncio.create_task(batcher.submit(None, 1))
    await until(lambda: Priority.INTERACTIVE in ran)  # it has places and a finish thread of its own
    for _ in range(21):
        finish.release()
    await asyncio.gather(bulk, click)
    await batcher.close()


async def test_a_batch_is_cut_by_bytes_too():
    async with batching(max_bytes=100) as (batcher, model):
        waiting = [
            asyncio.create_task(batcher.submit(size, 1, nbytes=size)) for size in (60, 50, 30, 10, 300)
        ]
        waiting.append(asyncio.create_task(batcher.submit("small", 1)))
        for size, task in zip((60, 50, 30, 10, 300), waiting, strict=False):
            assert flat(await task) == answer(size, 1)
        await waiting[-1]
    assert [[payload for payload, _, _ in batch] for batch in model.batches] == [
        [60, 30, 10, "small"],  # the last three pass those that wait for memory
        [50],
        [300],
    ]
    assert all(memory.held == 0 for memory in batcher._memory.values())


async def test_small_requests_pass_two_slow_large_ones_and_never_delay_the_second():
    async with batching(max_bytes=100, max_batch=1) as (batcher, model):
        model.gate.clear()
        large = [asyncio.create_task(batcher.submit(f"large {i}", 1, nbytes=70)) for i in range(2)]
        assert await asyncio.to_thread(model.entered.wait, 60)
        small = [asyncio.create_task(batcher.submit(f"small {i}", 1, nbytes=20)) for i in range(6)]
        await until(lambda: "small 0" in model.prepared)  # while the first one is on the device
        assert "large 1" not in model.prepared
        model.gate.set()
        await asyncio.gather(*large, *small)
    assert model.prepared[:3] == ["large 0", "small 0", "large 1"]


async def test_a_request_in_several_batches_holds_its_memory_once_and_to_its_end():
    async with batching(max_bytes=100, max_batch=4) as (batcher, model):
        model.gate.clear()
        first = asyncio.create_task(batcher.submit("first", 8, nbytes=70))
        assert await asyncio.to_thread(model.entered.wait, 60)
        await until(lambda: not batcher.waiting)  # its second half is ready too
        assert sum(memory.held for memory in batcher._memory.values()) == 70
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert sum(memory.held for memory in batcher._memory.values()) == 70  # still on the device
        model.gate.set()
        assert await batcher.submit("next", 1, nbytes=90)
    assert all(memory.held == 0 for memory in batcher._memory.values())


async def test_bytes_of_all_batches_in_progress_count_together():
    async with batching(max_bytes=100) as (batcher, model):
        model.gate.clear()
        first = asyncio.create_task(batcher.submit("first", 1, nbytes=60))
        assert await asyncio.to_thread(model.entered.wait, 60)
        second = asyncio.create_task(batcher.submit("second", 1, nbytes=60))
        urgent = asyncio.create_task(batcher.submit("other priority", 1, nbytes=60, priority=Priority.BULK))
        await until(lambda: "other priority" in model.prepared)
        assert model.prepared == ["first", "other priority"]
        model.gate.set()
        await asyncio.gather(first, second, urgent)


async def test_a_full_queue_refuses_at_once_with_a_retry_delay():
    async with batching(max_queue=10) as (batcher, model):
        waiting = await held(batcher, model)
        waiting.append(asyncio.create_task(batcher.submit("fits", 10)))
        await asyncio.sleep(0)
        with pytest.raises(RegionSearchError) as error:
            await batcher.submit("late", 1)
        assert error.value.kind is Kind.OVERLOADED
        assert error.value.retry_after_s > 0
        waiting.append(asyncio.create_task(batcher.submit("other priority", 10, priority=Priority.BULK)))
        await asyncio.sleep(0)
        assert batcher.waiting == 20
        model.gate.set()
        await asyncio.gather(*waiting)
        assert flat(await batcher.submit("larger than the queue, but alone", 25))
    assert ("late", 0) not in model.items


async def test_cancelled_requests_leave_the_queue_and_the_ready_slot():
    async with batching() as (batcher, model):
        model.gate.clear()
        running = asyncio.create_task(batcher.submit("running", 8))
        assert await asyncio.to_thread(model.entered.wait, 60)
        ready = asyncio.create_task(batcher.submit("ready", 8))
        queued = asyncio.create_task(batcher.submit("queued", 8))
        await asyncio.sleep(0.05)
        for task in (running, ready, queued):
            task.cancel()
        for task in (running, ready, queued):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert batcher.waiting == 0
        model.gate.set()
        assert flat(await batcher.submit("next", 1)) == answer("next", 1)
    assert {payload for payload, _ in model.items} == {"running", "next"}


async def test_a_deadline_is_kept_while_the_device_is_busy():
    async with batching() as (batcher, model):
        waiting = await held(batcher, model)
        loop = asyncio.get_running_loop()
        with pytest.raises(RegionSearchError) as error:
            await batcher.submit("late", 1, deadline=loop.time() + 0.05)
        assert error.value.kind is Kind.DEADLINE_EXCEEDED
        with surrounding_deadline(0.05), pytest.raises(RegionSearchError) as error:
            await batcher.submit("late", 1)
        assert error.value.kind is Kind.DEADLINE_EXCEEDED
        with pytest.raises(RegionSearchError) as error:
            await batcher.submit("late", 1, deadline=loop.time())
        assert error.value.kind is Kind.DEADLINE_EXCEEDED
        assert batcher.waiting == 0
        model.gate.set()
        await asyncio.gather(*waiting)
    assert "late" not in {payload for payload, _ in model.items}


async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    async with batching(max_batch=1) as (batcher, model):
        model.fault = lambda parts: time.sleep(0.05)
        await batcher.submit("teaches the pace", 3)
        long = asyncio.create_task(batcher.submit("long", 2000))
        await asyncio.sleep(0)
        with pytest.raises(RegionSearchError) as error:
            await batcher.submit("late", 1, deadline=asyncio.get_running_loop().time() + 60)
        assert error.value.kind is Kind.OVERLOADED
        long.cancel()


async def test_closing_finishes_what_was_admitted_and_refuses_the_rest():
    async with batching(close=False) as (batcher, model):
        waiting = await held(batcher, model)
        waiting.append(asyncio.create_task(batcher.submit("queued", 20)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(RegionSearchError) as error:
            await batcher.submit("late", 1)
        assert error.value.kind is Kind.UNAVAILABLE
        model.gate.set()
        await asyncio.wait_for(closing, 60)
        assert len(flat(waiting[2].result())) == 20


async def test_several_devices_share_the_work():
    threads = set()

    def fault(parts):
        threads.add(threading.current_thread().name)
        time.sleep(0.02)

    model = Model()
    model.fault = fault
    async with batching(model, devices=3) as (batcher, _):
        await asyncio.gather(*(batcher.submit(str(i), 8) for i in range(12)))
    assert len(threads) == 3
    assert sorted(model.items) == sorted((str(i), item) for i in range(12) for item in range(8))


async def test_an_idle_device_goes_before_a_busy_one():
    both = threading.Barrier(2)

    def device(parts):
        both.wait(60)  # passes only where two devices are at work at the same time
        return [None] * len(parts)

    settings = BatchSettings(max_batch=1, max_delay_s=0)
    batcher = Batcher("two", settings, device=[device, lambda parts: device(parts)])
    for _ in range(3):
        await batcher.submit(None, 2)
    await batcher.close()


async def test_a_flood_is_refused_quickly_and_what_was_admitted_is_answered():
    async with batching(max_queue=64) as (batcher, model):
        model.fault = lambda parts: time.sleep(0.002)
        refused = []

        async def caller(name):
            try:
                return flat(await batcher.submit(name, 1)) == answer(name, 1)
            except RegionSearchError as error:
                refused.append(error)
                return None

        outcomes = []
        for wave in range(20):
            outcomes += await asyncio.gather(*(caller(f"{wave}.{i}") for i in range(20 * 64)))
    assert outcomes.count(False) == 0
    assert outcomes.count(True) >= 20 * 64
    assert refused
    assert all(error.kind is Kind.OVERLOADED and error.retry_after_s > 0 for error in refused)


async def test_a_request_that_takes_long_to_prepare_does_not_hold_up_those_that_share_its_batch(monkeypatch):
    monkeypatch.setattr(batcher_module, "MAX_PREPARE_WAIT_S", 0.01)
    decoded = threading.Event()

    class Decoding(Model):
        def prepare(self, payload):
            if payload == "large":
                assert decoded.wait(60)
            return super().prepare(payload)

    async with batching(Decoding(), prepare_threads=2) as (batcher, model):
        large = asyncio.create_task(batcher.submit("large", 2))
        small = [asyncio.create_task(batcher.submit(payload, 1)) for payload in ("a", "b")]
        assert await asyncio.gather(*small) == [[[("a", 0)]], [[("b", 0)]]]
        assert not large.done()
        assert await batcher.submit("c", 1) == [[("c", 0)]]
        decoded.set()
        assert await large == [[("large", 0), ("large", 1)]]
        assert [len(batch) for batch in model.batches] == [2, 1, 1]
        assert await batcher.submit("d", 8) == [[("d", item) for item in range(8)]]  # its slot is free again
