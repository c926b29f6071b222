"""The memory that requests may hold at once."""

from __future__ import annotations

import asyncio

from services.runtime.memory import MemoryBudget, MemoryLedger


async def test_the_budget_admits_in_the_order_of_arrival_and_lets_small_ones_pass_a_large_one() -> None:
    budget = MemoryBudget(100)
    inside: list[int] = []
    leave = {nbytes: asyncio.Event() for nbytes in (60, 70, 10, 300)}

    async def visit(nbytes: int) -> None:
        async with budget.hold(nbytes):
            inside.append(nbytes)
            await leave[nbytes].wait()
            inside.remove(nbytes)

    async def settle() -> list[int]:
        for _ in range(5):
            await asyncio.sleep(0)
        return inside

    tasks = [asyncio.create_task(visit(nbytes)) for nbytes in (60, 70, 10, 300)]
    assert await settle() == [60, 10]
    leave[60].set()
    assert await settle() == [10, 70]
    leave[70].set()
    assert await settle() == [10, 300]  # larger than the budget, and so next to small ones only
    leave[10].set()
    leave[300].set()
    await asyncio.gather(*tasks)


async def test_a_large_request_never_waits_for_the_small_ones_that_passed_it() -> None:
    ledger = MemoryLedger(100)
    first = ledger.take("first", 70)
    assert first is not None
    assert ledger.take("large", 80) is None
    small = [ledger.take(f"small {i}", 10) for i in range(3)]
    assert [hold is not None for hold in small] == [True, True, False]  # 80 + 20 is all there is
    assert ledger.take("larger", 90) is None
    assert small[0] is not None
    small[0].give_back()
    third = ledger.take("small 2", 10)
    assert third is not None
    first.give_back()
    assert ledger.take("small 3", 10) is None
    large = ledger.take("large", 80)
    assert large is not None
    assert ledger.held == 95
    for hold in (small[1], third, large):
        assert hold is not None
        hold.give_back()
    assert ledger.held == 0
    assert ledger.take("larger", 90) is not None


async def test_small_requests_find_room_next_to_one_larger_than_the_memory_limit() -> None:
    ledger = MemoryLedger(100)
    huge = ledger.take("huge", 300)
    assert huge is not None
    small = ledger.take("small", 25)
    assert small is not None
    assert ledger.take("another", 26) is None  # waits, for it would not be small
    small.give_back()
    assert ledger.take("as large", 300) is None
    huge.give_back()
    assert ledger.held == 0


async def test_a_cancelled_waiter_leaves_the_memory_ledger_unchanged() -> None:
    budget = MemoryBudget(100)
    async with budget.hold(80):
        late = [asyncio.create_task(asyncio.wait_for(budget.hold(80).__aenter__(), 0.01)) for _ in range(3)]
        results = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(result, TimeoutError) for result in results)
    async with asyncio.timeout(60), budget.hold(100):
        pass
