"""What travels through the batcher: requests, their parts and batches; and where they wait for their turn."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, Field

from services.runtime.memory import Hold, MemoryLedger

Prepared = TypeVar("Prepared")

PATIENCE = 8  # batches that may pass a batch of a lower lane before one of these gets its turn


class BatchSettings(BaseModel):
    """How requests become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(64, gt=0, description="Items in a batch.")
    max_queue: int = Field(4096, gt=0, description="Items that may wait, in each lane.")
    max_bytes: int = Field(
        1 << 29,
        gt=0,
        description="Decoded pixels of the requests of a lane that are on their way through the stages. "
        "Small requests pass a large one that waits for its share; one that is larger than this goes alone.",
    )
    max_delay_s: float = Field(
        0.002, ge=0, description="Longest wait of an idle device, when calls come in quick succession."
    )
    prepare_threads: int = Field(4, gt=0, description="Threads that decode and resize.")
    hang_s: float = Field(
        300.0, gt=0, description="A batch that is longer on the device or in finish: the device is lost."
    )


class Lane(enum.IntEnum):
    """Who waits for the answer. Batches are of one lane, and those of the first lane go first."""

    INTERACTIVE = 0  # somebody, for something small
    STANDARD = 1  # somebody, for something that takes its time
    BULK = 2  # nobody in particular


class Request:
    """A payload of some items, and what has become of them.

    The event loop owns it; the stages read `payload` and `done`, and set `prepared` or `prepare_error`.
    """

    __slots__ = (
        "arrived", "cut", "done", "flying", "future", "hold", "items", "key", "lane", "left", "lock",
        "nbytes", "payload", "prepare_error", "prepared", "results", "span", "timer",
    )  # fmt: skip

    def __init__(
        self,
        payload: Any,
        items: int,
        nbytes: int,
        key: Hashable,
        lane: Lane,
        future: asyncio.Future[list[Any]],
    ) -> None:
        self.payload = payload
        self.items = items
        self.nbytes = nbytes
        self.key = key
        self.lane = lane
        self.future = future
        self.arrived = time.monotonic()
        self.span = trace.get_current_span().get_span_context()
        self.timer: asyncio.TimerHandle | None = None
        self.prepared: Any = None
        self.prepare_error: Exception | None = None
        self.lock: threading.Lock | None = threading.Lock()  # None once prepared
        self.hold: Hold | None = None  # memory that it was given, from its first batch to its end
        self.flying = 0  # batches on their way that have a part of it
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

    lane: Lane
    parts: list[Part[Any]]
    size: int  # items at the time of the cut
    requests: list[Request]  # at the time of the cut
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

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def items(self, lane: Lane | None = None) -> int:
        """Number of items that wait, in one lane or in all; from any thread."""
        return sum(self._items.values()) if lane is None else self._items[lane]

    def oldest(self, lane: Lane) -> float:
        """When the first request that waits in a lane arrived."""
        return next(iter(self._lanes[lane])).arrived

    def push(self, request: Request) -> None:
        """Puts a request at the end of its lane."""
        self._lanes[request.lane][request] = None
        self._items[request.lane] += request.items - request.cut

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it stands; nothing happens if it does not wait."""
        if request in self._lanes[request.lane]:
            del self._lanes[request.lane][request]
            self._items[request.lane] -= request.items - request.cut

    def move(self, request: Request, lane: Lane) -> None:
        """Puts what waits of a request at the end of another lane; nothing happens if nothing waits."""
        if request in self._lanes[request.lane]:
            self.remove(request)
            request.lane = lane
            self.push(request)

    def cut(self, lane: Lane, most: int, memory: MemoryLedger) -> Batch | None:
        """Takes items of one key out of a lane; may divide the last request.

        Args:
            lane: Where to take them.
            most: Number of items.
            memory: Of the lane. Requests that have to wait for it are passed by those that may.

        Returns:
            The batch; None when nothing waits, or all of it waits for memory.
        """
        parts: list[Part[Any]] = []
        whole: list[Request] = []
        room = most
        for request in self._lanes[lane]:
            if room == 0:
                break
            if parts and request.key != parts[0].request.key:
                continue
            if request.hold is None:
                request.hold = memory.take(request, request.nbytes)
                if request.hold is None:
                    continue
            size = min(room, request.items - request.cut)
            parts.append(Part(request, request.cut, request.cut + size))
            request.cut += size
            request.flying += 1
            room -= size
            if request.cut == request.items:
                whole.append(request)
        for request in whole:
            del self._lanes[lane][request]
        self._items[lane] -= most - room
        if not parts:
            return None
        return Batch(lane, parts, most - room, [part.request for part in parts], time.monotonic())


class ReadyQueue:
    """Batches that wait for a device: the first lane goes first, and no lane starves.

    After `PATIENCE` batches that passed others, one of these is next; and only one, so that the first lane
    never waits for two of them in a row.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: dict[Lane, deque[tuple[Batch, Exception | None]]] = {lane: deque() for lane in Lane}
        self._last_turn = dict.fromkeys(Lane, 0)
        self._turns = 0
        self._passed = 0
        self._closed = False

    def put(self, batch: Batch, error: Exception | None = None) -> None:
        """Adds a batch, or brings back one with the error that its last stage ended in."""
        with self._changed:
            self._ready[batch.lane].append((batch, error))
            self._changed.notify()

    def close(self) -> None:
        """Makes :meth:`get` return None once it has handed out what is there."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> tuple[Batch, Exception | None] | None:
        """Waits for the next batch."""
        with self._changed:
            while not (waiting := [lane for lane in Lane if self._ready[lane]]):
                if self._closed:
                    return None
                self._changed.wait()
            first, *passed = waiting
            late = passed and self._passed >= PATIENCE
            lane = min(passed, key=self._last_turn.__getitem__) if late else first
            self._passed = self._passed + 1 if passed and not late else 0
            self._turns += 1
            self._last_turn[lane] = self._turns
            return self._ready[lane].popleft()


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
