"""The memory that requests may hold at once."""

from __future__ import annotations

import asyncio

from services.runtime.memory import MemoryBudget


async def test_the_budget_admits_what_fits_in_the_order_of_arrival() -> None:
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
    assert await settle() == [60]
    leave[60].set()
    assert await settle() == [70, 10]
    leave[70].set()
    assert await settle() == [10]
    leave[10].set()
    assert await settle() == [300]  # larger than the budget, and so alone
    leave[300].set()
    await asyncio.gather(*tasks)


async def test_a_waiter_that_gives_up_leaves_no_trace() -> None:
    budget = MemoryBudget(100)
    async with budget.hold(80):
        late = [asyncio.create_task(asyncio.wait_for(budget.hold(80).__aenter__(), 0.01)) for _ in range(3)]
        results = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(result, TimeoutError) for result in results)
    async with asyncio.timeout(60), budget.hold(100):
        pass
