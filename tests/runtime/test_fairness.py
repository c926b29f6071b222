"""Callers share: turns, room in queues, slots."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from typing import Any

import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.rpc.calls import caller_name, calling_for, peer_address
from services.runtime.batch import Priority
from services.runtime.fair import FairQueue, FairSlots, Shares
from tests.runtime.batchers import answer, batching, flat
from tests.waiting import until


def drain(queue: FairQueue[str], step: int = 1000) -> list[str]:
    """The order in which all that waits is served, `step` items at a time."""
    order = []
    while queue:
        request = next(iter(queue))
        left = queue._entries[request].left
        queue.take(request, min(step, left))
        queue.served(min(step, left))
        order.append(request)
        if request not in queue:
            queue.leave(request[0])
    return order


def test_callers_take_turns_and_one_caller_is_first_come_first_served() -> None:
    queue: FairQueue[str] = FairQueue(1)
    for request in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        queue.push(request, request[0], 4)
    order = drain(queue)
    assert [request for request in order if request[0] == "a"] == ["a1", "a2", "a3", "a4"]
    assert {request[0] for request in order[:3]} == {"a", "b", "c"}
    assert order[-2:] == ["a3", "a4"]


def test_shares_are_counted_in_items_not_in_requests() -> None:
    queue: FairQueue[str] = FairQueue(1)
    for number in range(3):
        queue.push(f"a{number}", "a", 8)
    for number in range(16):
        queue.push(f"b{number:x}", "b", 1)
    order = drain(queue)
    assert sum(request[0] == "b" for request in order[: order.index("a1")]) >= 7
    assert order.index("a2") > order.index("be")


def test_a_large_request_is_served_in_turns_too() -> None:
    queue: FairQueue[str] = FairQueue(1)
    queue.push("a", "a", 100)
    queue.take("a", 10)
    queue.push("b", "b", 10)
    order = drain(queue, step=10)
    assert order.index("b") == 0
    assert order.count("a") == 9


def test_a_caller_with_one_request_at_a_time_goes_before_callers_with_many_up_to_its_share() -> None:
    queue: FairQueue[str] = FairQueue(16)
    for number in range(50):
        queue.push(f"a{number}", "a", 4)
    queue.take("a0", 4)
    served = []
    queue.push("b", "b", 4)
    for _ in range(40):
        request = next(iter(queue))
        queue.take(request, 4)
        queue.served(4)
        queue.leave(request[0])
        served.append(request[0])
        if request == "b":
            queue.push("b", "b", 4)  # the next one, as soon as the last one is answered
    assert served[:3] == ["b", "b", "b"]  # ahead by a quantum
    assert 18 <= served.count("b") <= 25  # but then half, and no more


def test_removed_requests_are_not_charged_and_leave_no_account() -> None:
    queue: FairQueue[str] = FairQueue(4)
    rng = random.Random(0)
    waiting: list[str] = []
    for number in range(2000):
        if waiting and rng.random() < 0.55:
            request = waiting.pop(rng.randrange(len(waiting)))
            if rng.random() < 0.5:
                queue.take(request, queue._entries[request].left)
                queue.served(1)
            queue.remove(request)
            queue.leave(request.split()[0])
        else:
            request = f"{rng.randrange(300)} {number}"
            queue.push(request, request.split()[0], rng.randint(1, 9))
            waiting.append(request)
        assert queue.waiting == sum(entry.left for entry in queue._entries.values())
        assert queue._order == sorted(queue._order)
    for request in waiting:
        queue.remove(request)
        queue.leave(request.split()[0])
    assert not queue
    assert not queue._accounts
    assert queue.waiting == queue._live == 0


def test_no_caller_takes_more_than_it_leaves_to_others() -> None:
    shares = Shares(12)
    for _ in range(6):
        assert shares.fits("a", 1)
        shares.add("a", 1)
    assert not shares.fits("a", 1)
    for _ in range(3):
        assert shares.fits("b", 1)
        shares.add("b", 1)
    assert not shares.fits("b", 1)
    assert shares.fits("newcomer", 2)
    assert shares.fits("", 3)  # without a name: as long as there is room
    assert not shares.fits("", 4)
    shares.add("a", -6)
    shares.add("b", -3)
    assert shares.fits("a", 100)  # alone
    assert not shares._held


async def test_slots_go_to_callers_in_turn() -> None:
    slots, order = FairSlots(1), []

    async def visit(name: str) -> None:
        with calling_for(name):
            async with slots.slot():
                order.append(name)
                await asyncio.sleep(0)

    await asyncio.gather(*(visit(name) for name in "aaaaab"))
    assert order.index("b") <= 2
    late = [asyncio.create_task(visit("a")) for _ in range(3)]
    await asyncio.sleep(0)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    async with asyncio.timeout(60), slots.slot():
        pass


async def test_a_click_passes_the_flood_of_another_caller_at_each_stage() -> None:
    """However many wait, it is next after the batch that runs and never behind one that is only ready."""
    decode_is_ready = threading.Event()
    async with batching(max_batch=4, max_queue=1000) as (batcher, model):
        model.fault = lambda parts: parts[0].prepared != "flood 1" or decode_is_ready.wait(60)
        model.gate.clear()
        with calling_for("flood"):
            flood = [asyncio.create_task(batcher.submit(f"flood {i}", 4)) for i in range(24)]
        await until(lambda: model.batches and len(model.prepared) == 2)  # one runs, one is ready
        with calling_for("click"):
            click = asyncio.create_task(batcher.submit("encode", 4))
        await until(lambda: "encode" in model.prepared)
        model.gate.set()
        await click
        with calling_for("click"):
            decode = asyncio.create_task(batcher.submit("decode", 1, continuation=True))
        await until(lambda: "decode" in model.prepared)
        decode_is_ready.set()
        await asyncio.gather(decode, *flood)
    order = [batch[0][0] for batch in model.batches]
    assert order[:4] == ["flood 0", "encode", "flood 1", "decode"]
    assert len({name for name in order if name.startswith("flood")}) == 24


async def test_a_single_call_does_not_run_with_the_small_requests_of_a_flood() -> None:
    async with batching() as (batcher, model):
        model.gate.clear()
        with calling_for("flood"):
            calls = [asyncio.create_task(batcher.submit(("flood", 0), 1))]
            assert await asyncio.to_thread(model.entered.wait, 60)
            calls += [asyncio.create_task(batcher.submit(("flood", number), 1)) for number in (1, 2)]
            await until(lambda: len(model.prepared) == 3)
        with calling_for("user"):
            calls.append(asyncio.create_task(batcher.submit(("user", 0), 1)))
            await until(lambda: len(model.prepared) == 4)
        model.gate.set()
        await asyncio.gather(*calls)
    names = [[payload[0] for payload, _, _ in batch] for batch in model.batches]
    assert names == [["flood"], ["user"], ["flood", "flood"]]


async def test_during_a_flood_a_device_waits_for_the_next_piece_of_a_single_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.stages.MAX_EXPECT_S", 60.0)
    async with batching(max_batch=4, max_queue=1000) as (batcher, model):
        for device in batcher._devices:
            device.times.learn(4, 1000.0)  # it may wait for half of that
        model.gate.clear()
        with calling_for("flood"):
            flood = [asyncio.create_task(batcher.submit(f"flood {i}", 4)) for i in range(24)]
        await until(lambda: model.batches and len(model.prepared) == 2)

        async def click() -> None:
            with calling_for("click"):
                await batcher.submit("encode", 4, more=5)
                await batcher.submit("decode", 1, continuation=True, more=4)
                await batcher.submit("refine", 4, continuation=True)

        clicking = asyncio.create_task(click())
        await until(lambda: "encode" in model.prepared)
        model.gate.set()
        await asyncio.gather(clicking, *flood)
    order = [batch[0][0] for batch in model.batches]
    assert order[:4] == ["flood 0", "encode", "decode", "refine"]


@pytest.mark.parametrize(
    ("owner", "rare", "every"), [("other", Priority.INTERACTIVE, 4), ("flood", Priority.BULK, 9)]
)
async def test_a_flood_of_clicks_goes_before_its_own_lower_priorities_and_behind_those_of_others(
    owner: str, rare: Priority, every: int
) -> None:
    priorities = []
    async with batching(max_batch=1, max_queue=1000, prepare_threads=4) as (batcher, model):
        steps = threading.Semaphore(0)

        def device(parts: Any) -> bool:
            priorities.append(parts[0].request.priority)
            return steps.acquire(timeout=60)

        model.fault = device
        tasks = []
        for name, priority in (("flood", Priority.INTERACTIVE), (owner, Priority.BULK)):
            with calling_for(name):
                tasks += [asyncio.create_task(batcher.submit(name, 1, priority=priority)) for _ in range(40)]
        for ran in range(40):  # one batch after the other, each time with both priorities ready
            await until(lambda ran=ran: len(priorities) > ran)
            await until(
                lambda: all(
                    not batcher._slots.free[priority] for priority in (Priority.INTERACTIVE, Priority.BULK)
                )
            )
            ready = batcher._devices[0]._ready._ready
            await until(lambda ready=ready: ready[Priority.INTERACTIVE] and ready[Priority.BULK])
            steps.release()
        for _ in range(80):
            steps.release()
        await asyncio.gather(*tasks)
    places = [place for place, priority in enumerate(priorities[1:40]) if priority is rare]
    assert {after - before for before, after in itertools.pairwise(places)} == {every}


async def test_a_single_request_is_prepared_before_the_rest_of_a_flood() -> None:
    async with batching(max_batch=8, prepare_threads=1) as (batcher, model):
        begun, go = threading.Event(), threading.Event()
        prepare = model.prepare

        def slowly(payload: object) -> object:
            begun.set()
            assert go.wait(60)
            return prepare(payload)

        batcher._prepare._prepare = slowly
        with calling_for("flood"):
            flood = [asyncio.create_task(batcher.submit(f"flood {i}", 1)) for i in range(24)]
        await until(begun.is_set)
        with calling_for("person"):
            person = asyncio.create_task(batcher.submit("person", 1))
        await until(lambda: len(batcher._slots.express[Priority.INTERACTIVE]) == 0)  # it is on its way
        go.set()
        await asyncio.gather(person, *flood)
    assert model.prepared.index("person") == 1


async def test_two_floods_are_served_equally() -> None:
    async with batching(max_batch=4, max_queue=1000) as (batcher, model):
        model.gate.clear()
        tasks = []
        for name in ("one", "other"):
            with calling_for(name):
                tasks += [asyncio.create_task(batcher.submit(name, 4)) for _ in range(20)]
        await until(lambda: len(model.prepared) >= 2)  # all of them wait, but for what fills the pipeline
        model.gate.set()
        await asyncio.gather(*tasks)
    order = [batch[0][0] for batch in model.batches]
    for served in range(8, 40):
        assert abs(order[:served].count("one") - order[:served].count("other")) <= 4


async def test_one_caller_does_not_fill_the_queue_for_others() -> None:
    async with batching(max_queue=16, max_batch=1) as (batcher, model):
        model.gate.clear()
        flood, refused = [], []
        with calling_for("flood"):
            for number in range(40):
                flood.append(asyncio.create_task(batcher.submit(number, 1)))
                await asyncio.sleep(0.002)
        with calling_for("other"):
            other = asyncio.create_task(batcher.submit("other", 2))
        await asyncio.sleep(0.01)
        assert not other.done()
        model.gate.set()
        assert flat(await other) == answer("other", 2)
        refused = [
            one for one in await asyncio.gather(*flood, return_exceptions=True) if isinstance(one, Exception)
        ]
    assert 20 <= len(refused) < 40
    for error in refused:
        assert isinstance(error, RegionSearchError)
        assert error.kind is Kind.OVERLOADED
        assert error.retry_after_s
        assert "max_queue" in error.message


async def test_a_call_is_admitted_once_with_all_its_pieces() -> None:
    loop = asyncio.get_running_loop()
    async with batching(max_batch=1, max_queue=10_000) as (batcher, model):
        for device in batcher._devices:
            device.times.learn(1, 1.0)
        model.gate.clear()
        waiting = [asyncio.create_task(batcher.submit("first", 8))]
        await until(lambda: len(model.prepared))
        soon = loop.time() + 20
        with pytest.raises(RegionSearchError) as refused:
            await batcher.submit("encode", 8, more=20, deadline=soon)
        assert refused.value.kind is Kind.OVERLOADED
        waiting.append(asyncio.create_task(batcher.submit("encode", 8, more=1, deadline=soon)))
        waiting.append(asyncio.create_task(batcher.submit("long", 100)))
        await asyncio.sleep(0)
        with pytest.raises(RegionSearchError):
            batcher.judge(1, deadline=soon)
        decode = asyncio.create_task(batcher.submit("decode", 1, deadline=soon, continuation=True))
        await asyncio.sleep(0)
        assert not decode.done()
        model.gate.set()
        await asyncio.gather(decode, *waiting)


def test_names_of_callers_tell_no_key_and_hold_for_all_connections_of_one() -> None:
    key = caller_name("secret", "10.0.0.1")
    assert "secret" not in key
    assert key == caller_name("secret", "10.0.0.2") != caller_name("other", "10.0.0.1")
    assert caller_name("", "10.0.0.1") != caller_name("", "10.0.0.2")
    assert (
        caller_name("", "2001:db8::1") == caller_name("", "2001:db8::ffff") != caller_name("", "2001:db9::1")
    )
    assert peer_address("ipv4:10.0.0.1:5000") == "10.0.0.1"
    assert peer_address("ipv6:%5B2001:db8::1%5D:5000") == "2001:db8::1"
    assert len(key) <= 32
