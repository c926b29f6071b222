"""What the batcher does when a stage breaks its promises."""

import asyncio
import weakref

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batch import BatchSettings
from services.runtime.batcher import Batcher
from services.runtime.stages import Failure
from tests.runtime.batchers import Model, answer, batching, flat, held
from tests.waiting import until


async def test_a_request_that_cannot_be_prepared_fails_alone():
    async with batching() as (batcher, _):
        results = await asyncio.gather(
            *(batcher.submit(name, 2) for name in ("a", "unreadable", "b")), return_exceptions=True
        )
    assert isinstance(results[1], ValueError)
    assert [flat(results[0]), flat(results[2])] == [answer("a", 2), answer("b", 2)]


@pytest.mark.parametrize("stage", ["device", "finish", "count"])
async def test_a_poisoned_request_fails_alone(stage):
    class Poisoned(Model):
        def device(self, parts):
            raw = super().device(parts)
            if stage == "device" and any(part.prepared == "poison" for part in parts):
                raise ValueError("poison")
            return raw

        def finish(self, raw):
            poisoned = any(item == ("poison", 0) for part in raw for item in part)
            if stage == "finish" and poisoned:
                raise ValueError("poison")
            return raw[:-1] if stage == "count" and poisoned else raw

    async with batching(Poisoned()) as (batcher, _):
        names = ["a", "b", "poison", "c", "d", "e"]
        results = await asyncio.gather(*(batcher.submit(name, 1) for name in names), return_exceptions=True)
        assert isinstance(results.pop(2), ValueError)
        assert [flat(result) for result in results] == [answer(name, 1) for name in "abcde"]
        assert flat(await batcher.submit("after", 1)) == answer("after", 1)


async def test_out_of_memory_halves_until_it_fits():
    def fault(parts):
        if sum(part.size for part in parts) > 3:
            raise MemoryError

    model = Model()
    model.fault = fault
    async with batching(model, classify=lambda error: Failure.OUT_OF_MEMORY) as (batcher, _):
        results = await asyncio.gather(batcher.submit("a", 7), batcher.submit("b", 1), batcher.submit("c", 6))
    assert [flat(result) for result in results] == [answer("a", 7), answer("b", 1), answer("c", 6)]


async def test_one_item_that_does_not_fit_fails_its_request_only():
    def fault(parts):
        if any(part.prepared == "huge" for part in parts):
            raise MemoryError("huge")

    model = Model()
    model.fault = fault
    async with batching(model, classify=lambda error: Failure.OUT_OF_MEMORY) as (batcher, _):
        huge, small = await asyncio.gather(
            batcher.submit("huge", 3), batcher.submit("small", 3), return_exceptions=True
        )
    assert isinstance(huge, RegionSearchError)
    assert huge.kind is Kind.TOO_LARGE
    assert isinstance(huge.__cause__, MemoryError)
    assert flat(small) == answer("small", 3)


async def test_a_failed_batch_frees_its_memory_before_the_retry():
    class Memory:
        pass

    taken, alive = [], []

    def fault(parts):
        alive.append([memory for memory in taken if memory() is not None])
        held = Memory()
        taken.append(weakref.ref(held))
        if sum(part.size for part in parts) > 1:
            raise MemoryError

    model = Model()
    model.fault = fault
    async with batching(model, classify=lambda error: Failure.OUT_OF_MEMORY) as (batcher, _):
        assert flat(await batcher.submit("a", 8)) == answer("a", 8)
    assert len(taken) == 15
    assert not any(alive)


@pytest.mark.parametrize("has_finish", [True, False])
async def test_an_idle_batcher_keeps_no_references_to_finished_requests(has_finish):
    class Thing:
        pass

    things = []

    def make():
        thing = Thing()
        things.append(weakref.ref(thing))
        return thing

    batcher = Batcher(
        "idle",
        BatchSettings(max_delay_s=0),
        prepare=lambda payload: make(),
        device=[lambda parts: [make() for _ in parts]],
        finish=(lambda raw: [make() for _ in raw]) if has_finish else None,
    )
    await batcher.submit(make(), 1)

    async with asyncio.timeout(60):
        await until(lambda: all(thing() is None for thing in things))
    assert len(things) == 3 + has_finish
    await batcher.close()


async def test_a_preparation_that_ends_its_thread_fails_alone():
    class Leaving(Model):
        def prepare(self, payload):
            if payload == "bad":
                raise SystemExit
            return payload

    async with batching(Leaving()) as (batcher, _):
        bad, good = await asyncio.wait_for(
            asyncio.gather(batcher.submit("bad", 1), batcher.submit("good", 1), return_exceptions=True), 60
        )
    assert isinstance(bad, RuntimeError)
    assert flat(good) == answer("good", 1)


def kill(error):
    def fault(parts):
        raise error

    return fault


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), RuntimeError("CUDA error: sticky")])
async def test_a_dead_stage_fails_all_requests_and_reports_fatal(error):
    reasons = []
    async with batching(classify=lambda error: Failure.FATAL, on_fatal=reasons.append) as (batcher, model):
        waiting = await held(batcher, model)
        waiting.append(asyncio.create_task(batcher.submit("queued", 3)))
        await asyncio.sleep(0)
        model.fault = kill(error)
        model.gate.set()
        for result in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60):
            assert isinstance(result, RegionSearchError)
            assert result.kind is Kind.UNAVAILABLE
        with pytest.raises(RegionSearchError):
            await batcher.submit("after", 1)
    assert len(reasons) == 1
    assert type(error).__name__ in reasons[0]


async def test_a_finish_stage_that_dies_is_reported_fatal():
    class Dying(Model):
        def finish(self, raw):
            raise SystemExit

    reasons = []
    async with batching(Dying(), on_fatal=reasons.append) as (batcher, _):
        with pytest.raises(RegionSearchError):
            await asyncio.wait_for(batcher.submit("a", 1), 60)
    assert "finish" in reasons[0]


async def test_a_device_that_hangs_is_reported_fatal():
    reasons = []
    async with batching(device_timeout_s=0.1, on_fatal=reasons.append) as (batcher, model):
        model.gate.clear()
        with pytest.raises(RegionSearchError) as error:
            await asyncio.wait_for(batcher.submit("a", 1), 60)
        assert error.value.kind is Kind.UNAVAILABLE
    assert "not answered" in reasons[0]


async def test_a_device_that_hangs_in_finish_is_noticed_without_another_batch():
    class Hanging(Model):
        def finish(self, raw):
            assert self.gate.wait(60)
            return raw

    model, reasons = Hanging(), []
    model.device = lambda parts: parts
    async with batching(model, device_timeout_s=0.1, on_fatal=reasons.append) as (batcher, _):
        model.gate.clear()
        with pytest.raises(RegionSearchError) as error:
            await asyncio.wait_for(batcher.submit("a", 1), 60)
        assert error.value.kind is Kind.UNAVAILABLE
    assert "not answered" in reasons[0]
