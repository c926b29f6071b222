"""Calls that wait for the same are answered together; each is admitted, leaves and fails by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from regionsearch.errors import Kind, RegionSearchError
from services.searcher.bounded_executor import BoundedExecutor, CancellationToken
from services.searcher.call_groups import CallGroups

MOST = 4
ADMITTED = 12  # two of them have a thread


class Call:
    """Answered by what `answer` returns or raises."""

    def __init__(self, answer: Callable[[], str] = lambda: "answer") -> None:
        self.answer = answer
        self.cancellation = CancellationToken()


def failing(error: Exception) -> Callable[[], str]:
    def fail() -> str:
        raise error

    return fail


class Groups:
    """Notes the groups; the first one waits at a gate."""

    def __init__(self) -> None:
        self.threads = BoundedExecutor("reads", 2, ADMITTED - 2)
        self.groups = CallGroups(self.threads, self._answer, MOST)
        self.made: list[list[Call]] = []
        self.begun, self.gate = threading.Event(), threading.Event()

    def _answer(self, calls: Sequence[Call]) -> Iterator[tuple[Call, str | Exception]]:
        self.made.append(list(calls))
        self.begun.set()
        assert self.gate.wait(60)
        for call in calls:
            try:
                yield call, call.answer()
            except ZeroDivisionError:  # of all
                raise
            except Exception as error:
                yield call, error

    async def begin(self, call: Call, key: str = "key") -> asyncio.Task[str]:
        task = asyncio.create_task(self.groups.run(key, call, call.cancellation))
        await asyncio.sleep(0)
        return task

    async def held(self) -> asyncio.Task[str]:
        """A first call, which is being answered."""
        task = await self.begin(Call())
        assert await asyncio.to_thread(self.begun.wait, 60)
        return task


@pytest.fixture
async def held() -> AsyncIterator[Groups]:
    made = Groups()
    yield made
    made.gate.set()
    await asyncio.to_thread(made.threads.close)


def kinds(outcomes: Sequence[str | BaseException]) -> list[object]:
    return [one.kind if isinstance(one, RegionSearchError) else one for one in outcomes]


async def test_calls_that_come_while_others_are_answered_are_the_next_group(held: Groups) -> None:
    first = await held.held()
    calls = [Call() for _ in range(MOST + 2)]
    tasks = [await held.begin(call) for call in calls]
    held.gate.set()
    assert await asyncio.gather(first, *tasks) == ["answer"] * (MOST + 3)
    assert held.made[1:] == [calls[:MOST], calls[MOST:]]


async def test_calls_of_another_key_do_not_wait(held: Groups) -> None:
    first = await held.held()
    other = await held.begin(Call(), "other")
    while len(held.made) < 2:  # noqa: ASYNC110  # a thread changes it
        await asyncio.sleep(0.01)
    held.gate.set()
    assert await asyncio.gather(first, other) == ["answer"] * 2


async def test_the_error_of_one_call_is_its_own(held: Groups) -> None:
    first = await held.held()
    left = RegionSearchError(Kind.CANCELLED, "the caller has left")
    answers = [lambda: "answer", failing(left), failing(MemoryError()), lambda: "answer"]
    tasks = [await held.begin(Call(answer)) for answer in answers]
    held.gate.set()
    outcomes = kinds(await asyncio.gather(first, *tasks, return_exceptions=True))
    assert outcomes == ["answer", "answer", Kind.CANCELLED, Kind.OVERLOADED, "answer"]


async def test_an_error_of_the_group_is_that_of_the_calls_that_are_left(held: Groups) -> None:
    first = await held.held()
    answers = [lambda: "answer", failing(ZeroDivisionError()), lambda: "answer"]
    tasks = [await held.begin(Call(answer)) for answer in answers]
    held.gate.set()
    outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [str, str, ZeroDivisionError, ZeroDivisionError]
    assert await (await held.begin(Call())) == "answer", "the next group begins"


async def test_a_call_whose_caller_has_left_is_not_in_the_next_group(held: Groups) -> None:
    first = await held.held()
    gone, stays = Call(), Call()
    leaving, staying = await held.begin(gone), await held.begin(stays)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert gone.cancellation.refusal() is not None
    held.gate.set()
    assert await asyncio.gather(first, staying) == ["answer"] * 2
    assert held.made[1:] == [[stays]]


async def test_calls_are_admitted_until_they_are_answered(held: Groups) -> None:
    first = await held.held()
    tasks = [await held.begin(Call()) for _ in range(ADMITTED - 1)]
    first.cancel()  # it is being answered nevertheless
    for refused in (held.groups.run("key", Call(), CancellationToken()), held.threads.run(lambda: None)):
        with pytest.raises(RegionSearchError) as caught:
            await refused
        assert caught.value.kind is Kind.OVERLOADED
    held.gate.set()
    assert await asyncio.gather(*tasks) == ["answer"] * (ADMITTED - 1)
    tasks = [await held.begin(Call()) for _ in range(ADMITTED)]
    assert await asyncio.gather(*tasks) == ["answer"] * ADMITTED, "all have left"


async def test_closing_waits_for_the_group_that_has_begun(held: Groups) -> None:
    first = await held.held()
    waiting = await held.begin(Call())
    closing = asyncio.create_task(asyncio.to_thread(held.threads.close))
    waiting.cancel()
    held.gate.set()
    await closing
    assert await first == "answer"
