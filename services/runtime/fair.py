"""Fair sharing between callers: the order of their requests, and how much of a limit each may use.

The caller is what :func:`regionsearch.rpc.calls.caller` returns. Work without a caller, such as a process's
own, takes turns like that of any caller, and is bound by the common limit alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from regionsearch.rpc.calls import caller as current_caller

T = TypeVar("T")


@dataclass(slots=True)
class _Account:
    """State of a caller that has requests here, or has used more than its share."""

    charged: float = 0.0  # virtual time up to which its share is used up
    live: int = 0  # requests that wait or run
    waiting: int = 0  # items that wait


@dataclass(slots=True)
class _Entry:
    account: _Account
    turn: float  # virtual time
    arrival: int
    left: int  # items that wait


class FairQueue(Generic[T]):
    """Requests of a number of items each, in an order that gives all callers the same number of items.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): a request's turn is at the virtual time up to which its
    caller has been charged, or now if that has passed; virtual time goes on by what is served, divided
    between the callers that have requests. As in FQ-CoDel, a caller with no other request here is moved ahead
    by a quantum: a caller with one request at a time does not wait for callers with many, until it has used
    up its share. Requests of one caller are first come, first served. Operations are logarithmic in the
    number of requests, plus the move of a list's tail.

    Args:
        quantum: Items by which a caller may be ahead of its share.
    """

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._now = 0.0  # virtual
        self._arrivals = 0
        self._accounts: dict[str, _Account] = {}
        self._live = 0  # callers with something here
        self._waiting = 0
        self._entries: dict[T, _Entry] = {}
        self._order: list[tuple[float, int, T]] = []

    def __bool__(self) -> bool:
        return bool(self._order)

    def __contains__(self, request: T) -> bool:
        return request in self._entries

    def __iter__(self) -> Iterator[T]:
        """Waiting requests in fair order; do not change the queue while iterating."""
        return (request for _, _, request in self._order)

    @property
    def waiting(self) -> int:
        """Items that wait; from any thread."""
        return self._waiting

    @property
    def oldest(self) -> T:
        """The request that has waited longest."""
        return next(iter(self._entries))

    def turn(self, request: T) -> float:
        """Virtual time of a waiting request's turn."""
        return self._entries[request].turn

    def waiting_of(self, caller: str) -> int:
        """Waiting items of one caller."""
        account = self._accounts.get(caller)
        return account.waiting if account else 0

    def is_alone(self, caller: str) -> bool:
        """Whether a caller with requests here has exactly one."""
        return self._accounts[caller].live == 1

    def ahead(self, caller: str, items: int) -> int:
        """Items that would be served before a request of this caller, if it arrived now, is done."""
        share = items + self.waiting_of(caller)
        if share >= self._waiting:
            return self._waiting
        return sum(min(account.waiting, share) for account in self._accounts.values())

    def push(self, request: T, caller: str, items: int) -> None:
        """Queues a request; it counts as the caller's until :meth:`leave`."""
        account = self._accounts.get(caller)
        if account is None:
            self._prune()
            account = self._accounts[caller] = _Account()
        begin = max(self._now, account.charged)
        turn = begin if account.live else begin - self._quantum
        account.charged = begin + items
        self._live += not account.live
        account.live += 1
        account.waiting += items
        self._waiting += items
        self._arrivals += 1
        self._entries[request] = _Entry(account, turn, self._arrivals, items)
        if self._order and turn < self._order[-1][0]:
            insort(self._order, (turn, self._arrivals, request))
        else:  # at the end, where all requests of a single caller go
            self._order.append((turn, self._arrivals, request))

    def take(self, request: T, items: int) -> None:
        """Takes items of a waiting request; its other items wait for another turn."""
        entry = self._entries[request]
        first = self._order[0][2] is request
        del self._order[0 if first else bisect_left(self._order, (entry.turn, entry.arrival))]
        entry.left -= items
        entry.account.waiting -= items
        self._waiting -= items
        if entry.left:
            entry.turn += items
            insort(self._order, (entry.turn, entry.arrival, request))
        else:
            del self._entries[request]

    def remove(self, request: T) -> None:
        """Removes the waiting items of a request, if any, without charging its caller for them."""
        entry = self._entries.get(request)
        if entry is not None:
            entry.account.charged -= entry.left
            self.take(request, entry.left)

    def leave(self, caller: str) -> None:
        """Ends a request of this caller: it was answered or abandoned."""
        account = self._accounts[caller]
        account.live -= 1
        self._live -= not account.live
        if not self._live:  # idle: all accounts start again
            self._accounts.clear()
            self._now = 0.0

    def served(self, items: int) -> None:
        """Advances virtual time by served items."""
        self._now += items / max(1, self._live)

    def _prune(self) -> None:
        """Drops accounts without requests whose share is not used up; rare, because it visits them all."""
        if len(self._accounts) > 2 * self._live + 64:
            self._accounts = {
                caller: account
                for caller, account in self._accounts.items()
                if account.live or account.charged > self._now
            }


def leaves_room(limit: int, total: int, own: int, amount: int) -> bool:
    """Whether a caller may take this much more of a limit: no more than it leaves to others.

    A single caller gets half; each of two gets a third, and so on, so that a new caller always finds room. A
    request that arrives while nothing is in use may exceed the limit.

    Args:
        limit: Limit of all callers together.
        total: Amount in use by all callers.
        own: Amount in use by this caller; 0 for an unnamed one, which is bound by the limit alone.
        amount: Requested amount.
    """
    return not total or own + amount <= limit - total


class Shares:
    """How much of a limit each caller holds, see :func:`leaves_room`.

    Args:
        limit: Limit of all callers together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._total = 0

    @property
    def total(self) -> int:
        """In use by all callers."""
        return self._total

    def fits(self, caller: str, amount: int) -> bool:
        """Whether a caller may take this much more."""
        return leaves_room(self._limit, self._total, self._held[caller] if caller else 0, amount)

    def add(self, caller: str, amount: int) -> None:
        """Adds to what a caller holds; a negative amount gives back."""
        self._total += amount
        self._held[caller] += amount
        if not self._held[caller]:
            del self._held[caller]


class FairSlots:
    """A number of slots, for which callers wait in fair order; for one event loop."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(1)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits for a slot and holds it for the body."""
        caller = current_caller()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(turn, caller, 1)
        self._grant()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
                self._queue.served(1)
            self._queue.remove(turn)
            self._queue.leave(caller)
            self._grant()

    def _grant(self) -> None:
        while self._free and self._queue:
            turn = next(iter(self._queue))
            self._queue.take(turn, 1)
            if not turn.done():  # else cancelled, and about to leave
                self._free -= 1
                turn.set_result(None)
