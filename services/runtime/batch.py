"""What travels through the batcher: requests, their parts and batches; and where they wait for their turn."""

from __future__ import annotations

import asyncio
import enum
import heapq
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from opentelemetry import trace
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from services.runtime.fair import FairQueue
from services.runtime.memory import Hold, MemoryLedger

Prepared = TypeVar("Prepared")

MAX_BYPASS = 8  # batches that may pass a batch of a lower priority before one of these gets its turn
CROWD_YIELDS = (
    3  # batches of others, of lower priorities, that go before one of callers with several requests
)


class BatchSettings(BaseModel):
    """How requests become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    max_batch: int = Field(64, gt=0, description="Items in a batch.")
    max_queue: int = Field(
        4096,
        gt=0,
        description="Items that may wait, in each priority. One caller gets no more than it leaves to "
        "others: half of it when alone.",
    )
    max_bytes: int = Field(
        1 << 29,
        gt=0,
        description="Decoded pixels of the requests of a priority that are on their way through the stages. "
        "Small requests pass a large one that waits for its share; one that is larger than this goes alone.",
    )
    max_delay_s: float = Field(
        0.002, ge=0, description="Longest wait of an idle device, when calls come in quick succession."
    )
    prepare_threads: int = Field(4, gt=0, description="Threads that decode and resize.")
    device_timeout_s: float = Field(
        300.0,
        gt=0,
        validation_alias=AliasChoices("device_timeout_s", "hang_s"),  # its name before 0.2
        description="A batch that is longer on the device or in finish: the device is lost.",
    )


class Priority(enum.IntEnum):
    """Who waits for the answer. Batches are of one priority, and those of the first priority go first."""

    INTERACTIVE = 0  # somebody, for something small
    STANDARD = 1  # somebody, for something that takes its time
    BULK = 2  # nobody in particular


class QueueEntry:
    """A payload of some items, and what has become of them.

    The event loop owns it; the stages read `payload` and `done`, and set `prepared` or `prepare_error`.
    """

    __slots__ = (
        "arrived",
        "caller",
        "cut",
        "done",
        "flying",
        "future",
        "hold",
        "items",
        "key",
        "left",
        "lock",
        "more",
        "nbytes",
        "payload",
        "prepare_error",
        "prepared",
        "priority",
        "results",
        "span",
        "timer",
    )  # fmt: skip

    def __init__(
        self,
        payload: Any,
        items: int,
        nbytes: int,
        key: Hashable,
        priority: Priority,
        future: asyncio.Future[list[Any]],
        caller: str = "",
        more: int = 0,
    ) -> None:
        self.payload = payload
        self.items = items
        self.nbytes = nbytes
        self.key = key
        self.priority = priority
        self.future = future
        self.caller = caller
        self.more = more
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


class BatchSlice(Generic[Prepared]):
    """Consecutive items of one request, in one batch.

    Attributes:
        start: First item.
        stop: One past the last item.
    """

    __slots__ = ("request", "start", "stop")

    def __init__(self, request: QueueEntry, start: int, stop: int) -> None:
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

    priority: Priority
    parts: list[BatchSlice[Any]]
    size: int  # items at the time of the cut
    requests: list[QueueEntry]  # at the time of the cut
    turn: float  # of its first part, in the fair order of its priority
    cut_at: float
    sparse: bool = False  # of callers who ask for nothing else at the time
    express: bool = False  # cut for callers of whom nothing else was on its way
    outcomes: list[tuple[BatchSlice[Any], Any]] = field(default_factory=list)  # results, or exceptions
    preparing: int = 0  # requests that are not prepared yet
    prepared_from: float = 0.0  # when the first of them began

    def prune_abandoned(self) -> None:
        """Takes out the parts that nobody waits for and those whose preparation failed."""
        kept = []
        for part in self.parts:
            if part.request.prepare_error is not None:
                self.outcomes.append((part, part.request.prepare_error))
            elif not part.abandoned:
                kept.append(part)
        self.parts = kept


class PriorityQueues:
    """Requests that have items in no batch yet, in fair order between their callers within a priority.

    Args:
        quantum: See :class:`FairQueue`.
    """

    def __init__(self, quantum: int) -> None:
        self._queues: dict[Priority, FairQueue[QueueEntry]] = {
            priority: FairQueue(quantum) for priority in Priority
        }

    def __bool__(self) -> bool:
        return any(self._queues.values())

    def __getitem__(self, priority: Priority) -> FairQueue[QueueEntry]:
        return self._queues[priority]

    def items(self, priority: Priority | None = None) -> int:
        """Number of items that wait, in one priority or in all; from any thread."""
        return sum(self._queues[one].waiting for one in (Priority if priority is None else (priority,)))

    def push(self, request: QueueEntry) -> None:
        """Lets what is in no batch of a request wait in its priority."""
        self._queues[request.priority].push(request, request.caller, request.items - request.cut)

    def leave(self, request: QueueEntry) -> None:
        """Takes a request out for good, wherever it is."""
        priority = self._queues[request.priority]
        priority.remove(request)
        priority.leave(request.caller)

    def move(self, request: QueueEntry, priority: Priority) -> None:
        """Puts what waits of a request into another priority; nothing happens if nothing waits."""
        if request in self._queues[request.priority]:
            self.leave(request)
            request.priority = priority
            self.push(request)

    def next_batch(
        self,
        priority: Priority,
        most: int,
        memory: MemoryLedger,
        may: Callable[[QueueEntry], bool] | None = None,
    ) -> Batch | None:
        """Takes items of one key out of a priority; may divide the last request.

        Args:
            priority: Where to take them.
            most: Number of items.
            memory: Of the priority. Requests that have to wait for it are passed by those that may.
            may: Which requests may have their turn; all of them when absent.

        Returns:
            The batch; None when none waits that may, or all of them wait for memory.
        """
        queue = self._queues[priority]
        parts: list[BatchSlice[Any]] = []
        room, turn = most, 0.0
        for request in queue:
            if room == 0:
                break
            if may is not None and not may(request):
                continue
            if parts and request.key != parts[0].request.key:
                continue
            if request.nbytes and request.hold is None:
                request.hold = memory.take(request, request.nbytes)
                if request.hold is None:
                    continue
            if not parts:
                turn = queue.turn(request)
            size = min(room, request.items - request.cut)
            parts.append(BatchSlice(request, request.cut, request.cut + size))
            room -= size
        for part in parts:
            part.request.cut = part.stop
            part.request.flying += 1
            queue.take(part.request, part.size)
        if not parts:
            return None
        requests = [part.request for part in parts]
        sparse = all(queue.is_alone(request.caller) for request in requests)
        return Batch(priority, parts, most - room, requests, turn, time.monotonic(), sparse=sparse)


class ReadyQueue:
    """Batches that wait for a device: the first priority goes first, and no priority starves.

    Within a priority they go in the fair order of their callers, so that a batch of somebody who asks for
    little passes one that was ready before it.

    A call of several pieces brings each when it has the answer to the one before. Where it is its caller's
    only one, the device waits a moment for the next piece (:meth:`expect`) before it begins with a batch of
    somebody who asks for many at once: else each of its pieces would wait for a whole batch of theirs.

    After `MAX_BYPASS` batches that passed others, one of these is next; and only one, so that the first
    priority never waits for two of them in a row. Who asks for many things at once has no such precedence
    over the lower priorities of others: `CROWD_YIELDS` batches of theirs go before each of such a crowd.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: dict[Priority, list[tuple[float, int, Batch, Exception | None]]] = {
            priority: [] for priority in Priority
        }
        self._arrivals = 0
        self._last_turn = dict.fromkeys(Priority, 0)
        self._turns = 0
        self._passed = 0
        self._yielded = 0
        self._expected: frozenset[str] = frozenset()  # callers
        self._expected_until = 0.0
        self._closed = False

    def expect(self, callers: Iterable[str], seconds: float) -> None:
        """Lets :meth:`get` wait for the next batch of these callers rather than hand out one of a crowd."""
        with self._changed:
            self._expected = frozenset(callers)
            self._expected_until = time.monotonic() + seconds

    def put(self, batch: Batch, error: Exception | None = None) -> None:
        """Adds a batch, or brings back one with the error that its last stage ended in."""
        with self._changed:
            self._arrivals += 1
            heapq.heappush(self._ready[batch.priority], (batch.turn, self._arrivals, batch, error))
            if not self._expected.isdisjoint(request.caller for request in batch.requests):
                self._expected_until = 0.0
            self._changed.notify()

    def close(self) -> None:
        """Makes :meth:`get` return None once it has handed out what is there."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> tuple[Batch, Exception | None] | None:
        """Waits for the next batch."""
        with self._changed:
            while True:
                waiting = [priority for priority in Priority if self._ready[priority]]
                if waiting:
                    left = self._expected_until - time.monotonic()
                    if left <= 0 or self._ready[waiting[0]][0][2].sparse:
                        break
                    self._changed.wait(left)
                elif self._closed:
                    return None
                else:
                    self._changed.wait()
            first, *passed = waiting
            late = passed and self._is_turn_of(passed, first)
            priority = min(passed, key=self._last_turn.__getitem__) if late else first
            self._passed = self._passed + 1 if passed and not late else 0
            self._yielded = self._yielded + 1 if late else 0
            self._turns += 1
            self._last_turn[priority] = self._turns
            _, _, batch, error = heapq.heappop(self._ready[priority])
            return batch, error

    def _is_turn_of(self, passed: Sequence[Priority], first: Priority) -> bool:
        """Whether a batch of the priorities that have been passed goes before that of the first one."""
        batch = self._ready[first][0][2]
        if not batch.sparse:
            crowd = {request.caller for request in batch.requests}
            others = (
                request.caller for priority in passed for request in self._ready[priority][0][2].requests
            )
            if not crowd.issuperset(others):
                return self._yielded < CROWD_YIELDS
        return self._passed >= MAX_BYPASS


def bisect_requests(
    parts: list[BatchSlice[Any]],
) -> tuple[list[BatchSlice[Any]], list[BatchSlice[Any]]] | None:
    """Divides a batch between requests; None when all parts are of one, which fails as a whole."""
    requests = list(dict.fromkeys(part.request for part in parts))
    if len(requests) < 2:
        return None
    first = set(requests[: len(requests) // 2])
    return (
        [part for part in parts if part.request in first],
        [part for part in parts if part.request not in first],
    )


def split_items(parts: list[BatchSlice[Any]]) -> tuple[list[BatchSlice[Any]], list[BatchSlice[Any]]] | None:
    """Divides a batch in the middle; None when there is only one item, which cannot be made smaller."""
    half = room = sum(part.size for part in parts) // 2
    if half == 0:
        return None
    left: list[BatchSlice[Any]] = []
    right: list[BatchSlice[Any]] = []
    for part in parts:
        here = min(room, part.size)
        if here:
            left.append(BatchSlice(part.request, part.start, part.start + here))
        if here < part.size:
            right.append(BatchSlice(part.request, part.start + here, part.stop))
        room -= here
    return left, right
