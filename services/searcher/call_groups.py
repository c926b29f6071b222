"""Calls that wait for the same are answered together, by one thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from services.searcher.bounded_executor import BoundedExecutor, CancellationToken, retryable

C = TypeVar("C")
A = TypeVar("A")

_ANSWERS = 4
"""That are handed over at a time: each time interrupts the thread, which works on; were it once at the end,
the next group would be the first caller who comes back, alone."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[C, A]):
    call: C
    answer: asyncio.Future[A]


class CallGroups(Generic[C, A]):
    """Groups the calls of each key: those that come while a group is answered are the next one.

    So a call that meets no other begins at once. Threads that answer one call each would hinder each other
    more than they help: only one at a time runs Python. Used by the event loop alone.

    Args:
        threads: Where groups are answered; it admits each call.
        answer: Answers a group on a thread: each call with its answer or error, in any order. What it raises
            is the error of those that are left.
        most: Calls of a group.
    """

    def __init__(
        self,
        threads: BoundedExecutor,
        answer: Callable[[Sequence[C]], Iterator[tuple[C, A | Exception]]],
        most: int,
    ) -> None:
        self._threads = threads
        self._answer = answer
        self._most = most
        self._waiting: dict[Hashable, deque[_Waiting[C, A]]] = {}  # of keys that have a group at work

    async def run(self, key: Hashable, call: C, cancellation: CancellationToken) -> A:
        """Answers a call. One that waits is never begun if the task is cancelled.

        Raises:
            RegionSearchError: OVERLOADED.
        """
        self._threads.admit()
        one: _Waiting[C, A] = _Waiting(call, asyncio.get_running_loop().create_future())
        if key in self._waiting:
            self._waiting[key].append(one)
        else:
            self._waiting[key] = deque([one])
            self._begin(key)
        try:
            return await one.answer
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    def _begin(self, key: Hashable) -> None:
        """Begins the next group of a key, if there is one."""
        waiting = self._waiting[key]
        group: list[_Waiting[C, A]] = []
        while waiting and len(group) < self._most:
            one = waiting.popleft()
            if one.answer.done():  # its caller has left
                self._threads.leave()
            else:
                group.append(one)
        if group:
            self._threads.submit(partial(self._work, asyncio.get_running_loop(), key, group))
        else:
            del self._waiting[key]

    def _work(self, loop: asyncio.AbstractEventLoop, key: Hashable, group: Sequence[_Waiting[C, A]]) -> None:
        left = {one.call: one for one in group}
        answered: list[tuple[_Waiting[C, A], A | BaseException]] = []
        try:
            for call, outcome in self._answer(list(left)):
                answered.append((left.pop(call), outcome))
                if len(answered) == _ANSWERS:
                    loop.call_soon_threadsafe(self._hand_over, answered)
                    answered = []
        except BaseException as error:
            answered += [(one, error) for one in left.values()]
        loop.call_soon_threadsafe(self._begin, key)
        loop.call_soon_threadsafe(self._hand_over, answered)

    def _hand_over(self, answered: Sequence[tuple[_Waiting[C, A], A | BaseException]]) -> None:
        for one, outcome in answered:
            self._threads.leave()
            if one.answer.done():  # its caller has left
                continue
            if isinstance(outcome, BaseException):
                one.answer.set_exception(retryable(outcome))
            else:
                one.answer.set_result(outcome)
