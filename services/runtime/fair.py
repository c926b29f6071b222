"""Fair shares between callers: who is next, and how much of something bounded each may take.

A caller is whoever :func:`regionsearch.rpc.callers.caller` says that it is. Work without one, as a process's
own, has its turn like that of any caller, and no bound but that of all.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from regionsearch.rpc.callers import caller as current_caller

T = TypeVar("T")


@dataclass(slots=True)
class _Account:
    """What is known of a caller while it has something here, or is ahead of its share."""

    charged: float = 0.0  # virtual time up to which its share is used up
    live: int = 0  # requests that wait or are worked on
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
    between the callers that want something. As in FQ-CoDel, a caller with nothing else here goes ahead by a
    quantum: who asks for one thing after the other does not wait for those who ask for many at once, until it
    has used up its share. Within a caller it is first come, first served. An operation takes the logarithm of
    what waits, and moves a list's tail.

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
        """Those that wait, in fair order; must not change meanwhile."""
        return (request for _, _, request in self._order)

    @property
    def waiting(self) -> int:
        """Items that wait; from any thread."""
        return self._waiting

    @property
    def oldest(self) -> T:
        """The one that has waited longest."""
        return next(iter(self._entries))

    def turn(self, request: T) -> float:
        """Virtual time at which a waiting request has its turn."""
        return self._entries[request].turn

    def waiting_of(self, caller: str) -> int:
        """Items of one caller that wait."""
        account = self._accounts.get(caller)
        return account.waiting if account else 0

    def is_alone(self, caller: str) -> bool:
        """Whether a caller, who has something here, has no more than one request."""
        return self._accounts[caller].live == 1

    def ahead(self, caller: str, items: int) -> int:
        """Items that will be served before a request of a caller that came now has been served."""
        share = items + self.waiting_of(caller)
        if share >= self._waiting:
            return self._waiting
        return sum(min(account.waiting, share) for account in self._accounts.values())

    def push(self, request: T, caller: str, items: int) -> None:
        """Lets a request wait; the caller has something here until :meth:`leave`."""
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
        insort(self._order, (turn, self._arrivals, request))

    def take(self, request: T, items: int) -> None:
        """Begins to serve items of a waiting request; what is left of it waits for another turn."""
        entry = self._entries[request]
        del self._order[bisect_left(self._order, (entry.turn, entry.arrival))]
        entry.left -= items
        entry.account.waiting -= items
        self._waiting -= items
        if entry.left:
            entry.turn += items
            insort(self._order, (entry.turn, entry.arrival, request))
        else:
            del self._entries[request]

    def remove(self, request: T) -> None:
        """Takes out what waits of a request; its caller is not charged for that. Others are left alone."""
        entry = self._entries.get(request)
        if entry is not None:
            entry.account.charged -= entry.left
            self.take(request, entry.left)

    def leave(self, caller: str) -> None:
        """A request of this caller is answered or given up."""
        account = self._accounts[caller]
        account.live -= 1
        self._live -= not account.live
        if not self._live:  # nobody wants anything: all begin anew
            self._accounts.clear()
            self._now = 0.0

    def served(self, items: int) -> None:
        """Virtual time goes on."""
        self._now += items / max(1, self._live)

    def _prune(self) -> None:
        """Forgets callers who have nothing here and have not used up their share; seldom: it looks at all."""
        if len(self._accounts) > 2 * self._live + 64:
            self._accounts = {
                caller: account
                for caller, account in self._accounts.items()
                if account.live or account.charged > self._now
            }


def leaves_room(limit: int, total: int, own: int, amount: int) -> bool:
    """Whether a caller may have so much more of something bounded: no more than what it leaves to others.

    Alone, a caller gets half; each of two gets a third, and so on: a newcomer finds room, whatever the others
    ask for. Whoever comes while nobody has anything may exceed the bound.

    Args:
        limit: The bound of all together.
        total: What all have.
        own: What the caller has; 0 for one without a name, who is bound by the limit alone.
        amount: What it asks for.
    """
    return not total or own + amount <= limit - total


class Shares:
    """How much each caller holds of something bounded, see :func:`leaves_room`.

    Args:
        limit: The bound of all together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._total = 0

    @property
    def total(self) -> int:
        """What all callers hold."""
        return self._total

    def fits(self, caller: str, amount: int) -> bool:
        """Whether a caller may have so much more."""
        return leaves_room(self._limit, self._total, self._held[caller] if caller else 0, amount)

    def add(self, caller: str, amount: int) -> None:
        """A caller takes so much, or gives back a negative amount."""
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
