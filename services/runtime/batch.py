"""What travels through the batcher: requests, their parts, batches, and the lanes where requests wait."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from opentelemetry import trace

Prepared = TypeVar("Prepared")

BULK_TURN = 8  # every 8th batch begins with the bulk lane when both lanes wait


class Lane(enum.IntEnum):
    """Who waits for the answer."""

    INTERACTIVE = 0
    BULK = 1


class Request:
    """A payload of some items, and what has become of them.

    The event loop owns it; the stages read `payload` and `done`, and set `prepared` or `prepare_error`.
    """

    __slots__ = (
        "arrived", "cut", "done", "future", "items", "key", "lane", "left", "lock", "payload",
        "prepare_error", "prepared", "results", "span", "timer",
    )  # fmt: skip

    def __init__(
        self, payload: Any, items: int, key: Hashable, lane: Lane, future: asyncio.Future[list[Any]]
    ) -> None:
        self.payload = payload
        self.items = items
        self.key = key
        self.lane = lane
        self.future = future
        self.arrived = time.monotonic()
        self.span = trace.get_current_span().get_span_context()
        self.timer: asyncio.TimerHandle | None = None
        self.prepared: Any = None
        self.prepare_error: Exception | None = None
        self.lock: threading.Lock | None = threading.Lock()  # None once prepared
        self.cut = 0  # items that are in a batch or finished
        self.left = items  # items without a result
        self.results: list[tuple[int, Any]] = []  # with the item that each begins with
        self.done = False  # nobody waits for it any more


class Part(Generic[Prepared]):
    """Consecutive items of one request, in one batch.

    Attributes:
        start: First item.
        stop: One past the last item.
    """

    __slots__ = ("request", "start", "stop")

    def __init__(self, request: Request, start: int, stop: int) -> None:
        self.request = request
        self.start = start
        self.stop = stop

    @property
    def prepared(self) -> Prepared:
        """What `prepare` made of the payload; the same object for all parts of a request."""
        value: Prepared = self.request.prepared
        return value

    @property
    def size(self) -> int:
        """Number of items."""
        return self.stop - self.start

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it any more: long device work may look here and skip it, with any result."""
        return self.request.done


@dataclass(eq=False)
class Batch:
    """Parts on their way through the stages."""

    parts: list[Part[Any]]
    size: int  # items at the time of the cut
    cut_at: float
    outcomes: list[tuple[Part[Any], Any]] = field(default_factory=list)  # results, or exceptions
    preparing: int = 0  # threads that are at it

    def drop(self) -> None:
        """Takes out the parts that nobody waits for and those whose preparation failed."""
        kept = []
        for part in self.parts:
            if part.request.prepare_error is not None:
                self.outcomes.append((part, part.request.prepare_error))
            elif not part.abandoned:
                kept.append(part)
        self.parts = kept


class Lanes:
    """Requests that have items in no batch yet, first come first served within a lane."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, OrderedDict[Request, None]] = {lane: OrderedDict() for lane in Lane}
        self._items = dict.fromkeys(Lane, 0)
        self._cuts = 0

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def items(self, lane: Lane | None = None) -> int:
        """Number of items that wait, in one lane or in all; from any thread."""
        return sum(self._items.values()) if lane is None else self._items[lane]

    def oldest(self) -> float:
        """When the first of the waiting requests arrived."""
        return min(next(iter(lane)).arrived for lane in self._lanes.values() if lane)

    def push(self, request: Request) -> None:
        """Puts a request at the end of its lane."""
        self._lanes[request.lane][request] = None
        self._items[request.lane] += request.items

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it stands; nothing happens if it does not wait."""
        if request in self._lanes[request.lane]:
            del self._lanes[request.lane][request]
            self._items[request.lane] -= request.items - request.cut

    def cut(self, most: int) -> Batch:
        """Takes up to `most` items of one key, the interactive lane first; may divide the last request."""
        self._cuts += 1
        order = [Lane.INTERACTIVE, Lane.BULK]
        if self._cuts % BULK_TURN == 0:
            order.reverse()
        key = next(iter(next(self._lanes[lane] for lane in order if self._lanes[lane]))).key
        parts: list[Part[Any]] = []
        room = most
        for lane in order:
            whole = []
            for request in self._lanes[lane]:
                if room == 0:
                    break
                if request.key != key:
                    continue
                size = min(room, request.items - request.cut)
                parts.append(Part(request, request.cut, request.cut + size))
                request.cut += size
                room -= size
                self._items[lane] -= size
                if request.cut == request.items:
                    whole.append(request)
            for request in whole:
                del self._lanes[lane][request]
        return Batch(parts, most - room, time.monotonic())


def halves_by_requests(parts: list[Part[Any]]) -> tuple[list[Part[Any]], list[Part[Any]]] | None:
    """Divides a batch between requests; None when all parts are of one, which fails as a whole."""
    requests = list(dict.fromkeys(part.request for part in parts))
    if len(requests) < 2:
        return None
    first = set(requests[: len(requests) // 2])
    return (
        [part for part in parts if part.request in first],
        [part for part in parts if part.request not in first],
    )


def halves_by_items(parts: list[Part[Any]]) -> tuple[list[Part[Any]], list[Part[Any]]] | None:
    """Divides a batch in the middle; None when there is only one item, which cannot be made smaller."""
    half = room = sum(part.size for part in parts) // 2
    if half == 0:
        return None
    left: list[Part[Any]] = []
    right: list[Part[Any]] = []
    for part in parts:
        here = min(room, part.size)
        if here:
            left.append(Part(part.request, part.start, part.start + here))
        if here < part.size:
            right.append(Part(part.request, part.start + here, part.stop))
        room -= here
    return left, right
