"""Requests as the batcher holds them: their slices, batches of these, and the queues before a batch."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from opentelemetry import trace
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from services.runtime.fair import FairQueue
from services.runtime.memory import Hold, MemoryLedger

Prepared = TypeVar("Prepared")


class BatchSettings(BaseModel):
    """How requests become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    max_batch: int = Field(64, gt=0, description="Items in a batch.")
    max_queue: int = Field(
        4096,
        gt=0,
        description="Items that may wait, in each priority. One caller may use no more than it leaves to "
        "others: half of it when alone.",
    )
    max_bytes: int = Field(
        1 << 29,
        gt=0,
        description="Bytes of decoded pixels in the stages, per priority. Small requests pass a large one "
        "that waits for memory; no request counts as more than three quarters of the limit.",
    )
    max_delay_s: float = Field(
        0.002,
        ge=0,
        description="Longest wait of an idle device for a fuller batch, when calls come in quick succession.",
    )
    reproducible: bool = Field(
        False,
        description="Whether a batch holds items of one request only: its results then do not depend, to the "
        "last bit, on other requests of the same time. Many small requests take longer.",
    )
    prepare_threads: int = Field(4, gt=0, description="Threads that decode and resize.")
    device_timeout_s: float = Field(
        300.0,
        gt=0,
        validation_alias=AliasChoices("device_timeout_s", "hang_s"),  # its name before 0.2
        description="Time of a batch on the device, or in finish, after which the device counts as lost.",
    )


class Priority(enum.IntEnum):
    """Urgency of a request. A batch is of one priority; INTERACTIVE batches go first."""

    INTERACTIVE = 0  # a user waits for a short request
    STANDARD = 1  # a user waits for a long request
    BULK = 2  # background work


class QueueEntry:
    """A request in the batcher: its payload, the number of items, and their progress.

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
        self.hold: Hold | None = None  # memory that it holds, from its first batch to its end
        self.flying = 0  # batches in progress that have a slice of it
        self.cut = 0  # items that are in a batch or finished
        self.left = items  # items without a result
        self.results: list[tuple[int, Any]] = []  # with the item that each begins with
        self.done = False  # answered, failed or abandoned


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
        """The result of `prepare`; the same object for all slices of a request."""
        value: Prepared = self.request.prepared
        return value

    @property
    def size(self) -> int:
        """Number of items."""
        return self.stop - self.start

    @property
    def abandoned(self) -> bool:
        """Whether the caller is gone; long device work may check this and skip it, with any result."""
        return self.request.done


@dataclass(eq=False)
class Batch:
    """Slices of requests that run through the stages together."""

    priority: Priority
    parts: list[BatchSlice[Any]]
    size: int  # items at the time of the cut
    requests: list[QueueEntry]  # at the time of the cut
    turn: float  # of its first part, in the fair order of its priority
    cut_at: float
    sparse: bool = False  # its callers have no other request
    express: bool = False  # its callers had nothing else in progress
    outcomes: list[tuple[BatchSlice[Any], Any]] = field(default_factory=list)  # results, or exceptions
    preparing: int = 0  # requests that are not prepared yet
    prepared_from: float = 0.0  # when the first of them began
    slotted: bool = True  # occupies a slot of the pipeline
    begun: bool = False  # a device has taken it
    joined: list[Batch] = field(default_factory=list)  # those that run with it
    timer: asyncio.TimerHandle | None = None  # until it is split

    @property
    def key(self) -> Hashable:
        """The key of its requests."""
        return self.requests[0].key

    def takes(self, other: Batch, max_batch: int) -> bool:
        """Whether another batch of its priority can run with it.

        A batch of callers without other requests is not made longer by one of callers with many.
        """
        fits = self.size + other.size <= max_batch
        return fits and self.key == other.key and self.sparse == other.sparse

    def join(self, other: Batch) -> None:
        """Runs another batch with this one."""
        self.joined.append(other)
        self.parts += other.parts
        self.requests += other.requests
        self.outcomes += other.outcomes
        self.size += other.size

    def split_prepared(self) -> Batch | None:
        """Moves what is prepared into a batch without a slot; None if that is nothing, or everything."""
        waiting = {request for request in self.requests if request.lock is not None}
        if not waiting or len(waiting) == len(self.requests):
            return None
        parts = [part for part in self.parts if part.request not in waiting]
        early = replace(
            self,
            parts=parts,
            size=sum(part.size for part in parts),
            requests=[part.request for part in parts],
            outcomes=[],
            preparing=0,
            slotted=False,
            joined=[],
            timer=None,
        )
        self.parts = [part for part in self.parts if part.request in waiting]
        self.requests = [part.request for part in self.parts]
        self.size -= early.size
        return early

    def prune_abandoned(self) -> None:
        """Removes abandoned slices and those whose preparation failed."""
        kept = []
        for part in self.parts:
            if part.request.prepare_error is not None:
                self.outcomes.append((part, part.request.prepare_error))
            elif not part.abandoned:
                kept.append(part)
        self.parts = kept


class PriorityQueues:
    """Requests with items that are in no batch yet: one fair queue for each priority.

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
        """Number of waiting items, of one priority or of all; from any thread."""
        return sum(self._queues[one].waiting for one in (Priority if priority is None else (priority,)))

    def push(self, request: QueueEntry) -> None:
        """Queues the items of a request that are in no batch yet."""
        self._queues[request.priority].push(request, request.caller, request.items - request.cut)

    def leave(self, request: QueueEntry) -> None:
        """Removes a request for good, whether it waits or runs."""
        priority = self._queues[request.priority]
        priority.remove(request)
        priority.leave(request.caller)

    def move(self, request: QueueEntry, priority: Priority) -> None:
        """Moves the waiting items of a request, if any, to another priority."""
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
        """Takes items of one key out of a priority; may split the last request.

        Args:
            priority: The priority.
            most: Largest number of items.
            memory: The priority's memory. Requests that fit pass those that have to wait for memory.
            may: Selects the eligible requests; all when absent.

        Returns:
            The batch; None when no eligible request waits, or all of them wait for memory.
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


def bisect_requests(
    parts: list[BatchSlice[Any]],
) -> tuple[list[BatchSlice[Any]], list[BatchSlice[Any]]] | None:
    """Splits a batch between requests; None when all slices are of one request, which fails as a whole."""
    requests = list(dict.fromkeys(part.request for part in parts))
    if len(requests) < 2:
        return None
    first = set(requests[: len(requests) // 2])
    return (
        [part for part in parts if part.request in first],
        [part for part in parts if part.request not in first],
    )


def split_items(parts: list[BatchSlice[Any]]) -> tuple[list[BatchSlice[Any]], list[BatchSlice[Any]]] | None:
    """Splits a batch in the middle; None for a single item."""
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
