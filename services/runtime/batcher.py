"""Many callers, one device: dynamic batching with admission control.

A request is a payload with a number of items (regions, texts, prompts, query vectors). The batcher

- admits by items, on the event loop: a full queue refuses at once and says when to retry;
- reserves a slot in the pipeline first and forms the batch then, so that batches grow while the device is
  busy; what arrives while the next batch waits joins it;
- fills batches across callers, splits requests that are larger than a batch, and joins their results;
- limits bytes too, so that many large images are not decoded at the same time; small requests pass a large
  one that waits for memory (see `memory.py`);
- drops requests that were cancelled or are late, whether they wait or are about to run;
- shares a priority's time between callers (see `fair.py`): a caller with one request at a time waits for the
  batch that runs, not for all requests of another caller;
- gives every priority its own slots in the pipeline and serves the first priority first, so that a small
  request waits for the batch that runs and for none behind it; lower priorities are never starved;
- lets a bad request fail alone, retries batches that ran out of memory in halves, and reports the process as
  lost when a stage has died or a device hangs (see `stages.py`).

Scheduling follows text-embeddings-inference's slot-then-cut and infinity's three overlapped stages.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import structlog
from opentelemetry import context, trace

from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.rpc.calls import caller, remaining
from services.runtime.batch import Batch, BatchSettings, BatchSlice, Priority, PriorityQueues, QueueEntry
from services.runtime.fair import leaves_room
from services.runtime.memory import MemoryLedger
from services.runtime.metrics import QueueMetrics
from services.runtime.pipeline_slots import PipelineSlots
from services.runtime.stages import DeviceThread, Failure, PreparePool, always_poison

__all__ = ["BatchSettings", "BatchSlice", "Batcher", "Failure", "Priority"]

Payload = TypeVar("Payload")
Result = TypeVar("Result")

MAX_PREPARE_WAIT_S = 0.2  # for the other requests of a batch; then those that are prepared go on before them
WATCHDOG_PERIOD_S = 1.0
STOPPING = "stopping"

_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("regionsearch")


class Batcher(Generic[Payload, Result]):
    """Feeds one or more devices from one queue. Use it on the event loop that made it.

    Args:
        name: For metrics, logs and thread names.
        settings: Limits and times.
        device: For each device, the function that runs a batch on it: takes the batch's slices, of requests
            of one key, and returns what `finish` takes. It is only called from that device's own thread.
        prepare: Turns a payload into ``part.prepared``, once per request, in a thread pool (decode, resize).
            None leaves the payload as it is.
        finish: Turns what `device` returned into one result per slice, in a thread for each priority, and in
            the device's thread while a failed batch is bisected. None where `device` returns these results.
        classify: Decides what an exception of a stage means.
        on_fatal: Called once, on the event loop, when a stage has died or a device is lost;
            :meth:`services.runtime.server.Server.fail` is meant for it.
    """

    def __init__(
        self,
        name: str,
        settings: BatchSettings,
        *,
        device: Sequence[Callable[[Sequence[BatchSlice[Any]]], Any]],
        prepare: Callable[[Payload], Any] | None = None,
        finish: Callable[[Any], Sequence[Result]] | None = None,
        classify: Callable[[Exception], Failure] = always_poison,
        on_fatal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._queues = PriorityQueues(settings.max_batch)
        self._metrics = QueueMetrics(name)
        self._metrics.cost.set_function(self._queues.items)
        self._running = 0  # items in batches
        self._memory = {priority: MemoryLedger(settings.max_bytes) for priority in Priority}
        self._live: set[QueueEntry] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: str | None = None  # why requests are refused
        self._pump_due = False
        self._delay: asyncio.TimerHandle | None = None
        self._last_arrival = float("-inf")
        self._quick = False  # the last two requests came within `max_delay_s`
        self._prepare = (
            None if prepare is None else PreparePool(name, prepare, settings.prepare_threads, self._metrics)
        )
        self._devices = [
            DeviceThread(
                f"{name}-{index}",
                function,
                finish,
                classify,
                functools.partial(self._from_thread, self._on_free),
                functools.partial(self._from_thread, self._deliver),
                functools.partial(self._from_thread, self._fail),
                self._metrics,
                settings.max_batch,
            )
            for index, function in enumerate(device)
        ]
        self._slots = PipelineSlots(self._devices)
        self._watch = self._loop.create_task(self._watch_devices())

    async def submit(
        self,
        payload: Payload,
        items: int,
        *,
        nbytes: int = 0,
        key: Hashable = None,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        continuation: bool = False,
        more: int = 0,
    ) -> list[Result]:
        """Waits for the results of a request.

        Cancelling the caller withdraws the request; its items on the device are run and dropped.

        Args:
            payload: What `prepare` takes.
            items: Number of items in it, at least 1.
            nbytes: Memory that it takes from its preparation to its answer, where that is much.
            key: Only requests of the same key share a batch; none do with `reproducible`.
            priority: Urgency.
            deadline: Time of the event loop's clock after which the answer is useless; the surrounding
                :func:`regionsearch.rpc.calls.deadline` when absent.
            continuation: The request is a later piece of a call: it was admitted with the first piece, and
                neither a full nor a long queue refuses it. A call submits one piece at a time.
            more: Items that the same call will submit as `continuation` after this answer. They count for
                admission, and a device may wait a moment for them.

        Returns:
            One result per slice, in the order of the items; a request that fitted into one batch has one.

        Raises:
            RegionSearchError: OVERLOADED when the queue is full or longer than the deadline,
                DEADLINE_EXCEEDED when the deadline has passed, UNAVAILABLE when the batcher is closed or its
                device is lost.
            Exception: What `prepare`, `device` or `finish` raised for this request.
        """
        if deadline is None and (left := remaining()) is not None:
            deadline = self._loop.time() + left
        if continuation:
            self._check_open(deadline)
        else:
            self.judge(items, priority=priority, deadline=deadline, more=more)
        if self._settings.reproducible:
            key = object()
        request = QueueEntry(
            payload, items, nbytes, key, priority, self._loop.create_future(), caller(), more
        )
        self._enqueue(request, deadline)
        try:
            return await request.future
        except asyncio.CancelledError:
            if not request.done:
                self._metrics.dropped_cancelled.inc()
                self._release(request)
            raise

    def escalate(self, payload: Payload, priority: Priority) -> None:
        """Moves a request to a more urgent priority, because a call of that priority waits for it too.

        Items in a batch stay there; a request that the priority has no room for stays where it is.

        Args:
            payload: The object that was submitted.
            priority: The new one; without effect unless it is more urgent than the request's own.
        """
        for request in self._live:
            if (
                request.payload is payload
                and priority < request.priority
                and self._has_room(priority, request.caller, request.items)
            ):
                self._memory[request.priority].leave(request)
                self._queues.move(request, priority)
                self._schedule()

    async def close(self) -> None:
        """Refuses new requests, waits for admitted ones, ends the threads."""
        self._closed = self._closed or STOPPING
        await self._idle.wait()
        self._watch.cancel()
        if self._prepare is not None:
            # Before the devices: a batch of cancelled requests may be on its way to one.
            await asyncio.to_thread(self._prepare.close)
        timeout_s = 30.0 if self._closed == STOPPING else 0.1  # a lost device may never answer
        await asyncio.gather(*(asyncio.to_thread(device.close, timeout_s) for device in self._devices))

    @property
    def waiting(self) -> int:
        """Admitted items that are in no batch yet."""
        return self._queues.items()

    def judge(
        self,
        items: int,
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        more: int = 0,
    ) -> None:
        """Refuses what :meth:`submit` would refuse now; for calls that do other work before they submit.

        Raises:
            RegionSearchError: See :meth:`submit`.
        """
        self._check_open(deadline)
        who = caller()
        full = not self._has_room(priority, who, items)
        if not full and deadline is None:
            return
        delay = self._expected_wait(priority, who, items, more)
        if full:
            self._metrics.refused_full.inc()
            queue, limit = self._queues[priority], self._settings.max_queue
            message = f"{self._name}: {queue.waiting} of {limit} items are waiting"
            if queue.waiting + items <= limit:
                message += f", {queue.waiting_of(who)} of them yours; the rest is reserved for other callers"
            raise overloaded(
                f"{message} (batching.max_queue); retry later or on another replica", max(delay, 0.01)
            )
        if deadline is not None and self._loop.time() + delay >= deadline:
            self._metrics.refused_late.inc()
            raise overloaded(f"{self._name}: the expected wait exceeds the call's deadline", max(delay, 0.01))

    def _check_open(self, deadline: float | None) -> None:
        if self._closed is not None:
            raise RegionSearchError(Kind.UNAVAILABLE, f"{self._name}: {self._closed}; try another replica")
        if deadline is not None and self._loop.time() >= deadline:
            self._metrics.refused_late.inc()
            raise self._late()

    def _enqueue(self, request: QueueEntry, deadline: float | None) -> None:
        if request.items < 1:
            raise ValueError("a request needs at least one item")
        if self._prepare is None:
            request.prepared, request.lock = request.payload, None
        if deadline is not None:
            request.timer = self._loop.call_at(deadline, self._expire, request)
        self._live.add(request)
        self._idle.clear()
        self._queues.push(request)
        self._quick = request.arrived - self._last_arrival < self._settings.max_delay_s
        self._last_arrival = request.arrived
        self._schedule()

    def _has_room(self, priority: Priority, who: str, items: int) -> bool:
        """Whether a priority has room for a request of a caller; a single one may exceed the queue."""
        queue = self._queues[priority]
        own = queue.waiting_of(who) if who else 0
        return leaves_room(self._settings.max_queue, queue.waiting, own, items)

    def _expected_wait(self, priority: Priority, who: str, items: int, more: int) -> float:
        """Seconds until a call that arrived now would start to run or, where it has `more`, would be done;
        from the times of recent batches.
        """
        ahead = self._running + sum(self._queues[before].waiting for before in Priority if before < priority)
        ahead += self._queues[priority].ahead(who, items + more) + (items + more if more else 0)
        max_batch = self._settings.max_batch
        return min(device.times.expect(ahead, max_batch) for device in self._devices) / len(self._devices)

    def _schedule(self) -> None:
        """Runs :meth:`_pump` after the calls that are ready now, so that they can share a batch."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Fills the free slots of the pipeline."""
        self._pump_due = False
        settings = self._settings
        for priority in Priority:
            while self._queues[priority] and not self._worth_waiting(priority):
                memory = self._memory[priority]
                formed = self._slots.next_batch(priority, self._queues, settings.max_batch, memory)
                if formed is None:
                    break
                batch, device = formed
                self._running += batch.size
                self._metrics.wait.observe(batch.cut_at - batch.parts[0].request.arrived)
                if self._prepare is None:
                    device.put(batch)
                else:
                    self._prepare.put(batch, device.put)
                    self._split_later(self._prepare, batch, device)

    def _split_later(self, pool: PreparePool, batch: Batch, device: DeviceThread) -> None:
        """Has what is prepared of a batch go on without the rest, if that takes long."""

        def split() -> None:
            if pool.split(batch, device.put):
                self._split_later(pool, batch, device)

        if len(batch.requests) > 1:
            batch.timer = self._loop.call_later(MAX_PREPARE_WAIT_S, split)

    def _worth_waiting(self, priority: Priority) -> bool:
        """Whether idle devices should wait for more requests; if so, schedules the end of the wait."""
        if not self._quick or not self._slots.are_idle:
            return False
        if self._queues.items(priority) >= self._settings.max_batch:
            return False
        left = self._queues[priority].oldest.arrived + self._settings.max_delay_s - time.monotonic()
        if left > 0 and self._delay is None:
            self._delay = self._loop.call_later(left, self._end_delay)
        return left > 0

    def _end_delay(self) -> None:
        self._delay = None
        self._schedule()

    def _from_thread(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop has been closed: no caller is left
            _log.debug("event loop is closed", queue=self._name)

    def _on_free(self, device: DeviceThread, batch: Batch) -> None:
        for one in (batch, *batch.joined):
            if one.slotted:
                self._slots.give_back(one, device)
        if self._queues:
            self._schedule()

    def _deliver(self, batch: Batch) -> None:
        for one in (batch, *batch.joined):
            if one.timer is not None:
                one.timer.cancel()
        self._running -= batch.size
        self._queues[batch.priority].served(batch.size)
        self._metrics.items.inc(batch.size)
        self._trace(batch)
        for part, outcome in batch.outcomes:
            request = part.request
            if request.done:
                continue
            if isinstance(outcome, Exception):
                self._resolve(request, error=outcome)
                continue
            request.results.append((part.start, outcome))
            request.left -= part.size
            if request.left == 0:
                self._resolve(request)
        self._slots.finished(batch)
        for request in batch.requests:
            request.flying -= 1
            if request.hold is not None:
                self._free(request)

    def _resolve(self, request: QueueEntry, error: Exception | None = None) -> None:
        self._release(request)
        if request.future.done():  # cancelled a moment ago
            return
        if error is not None:
            request.future.set_exception(error)
        else:
            if len(request.results) > 1:
                request.results.sort(key=lambda result: result[0])
            request.future.set_result([result for _, result in request.results])

    def _release(self, request: QueueEntry) -> None:
        request.done = True
        request.payload = None
        if request.timer is not None:
            request.timer.cancel()
        self._queues.leave(request)
        if request.nbytes:
            self._memory[request.priority].leave(request)
            self._free(request)
        self._live.discard(request)
        if not self._live:
            self._idle.set()

    def _free(self, request: QueueEntry) -> None:
        """Releases the memory of a request that is done and in no batch."""
        if request.hold is not None and request.done and not request.flying:
            request.hold.give_back()
            request.hold = None
            if self._queues:
                self._schedule()

    def _expire(self, request: QueueEntry) -> None:
        self._metrics.dropped_expired.inc()
        self._resolve(request, self._late())

    def _late(self) -> RegionSearchError:
        message = f"{self._name}: the deadline passed before the answer was ready"
        return RegionSearchError(Kind.DEADLINE_EXCEEDED, message)

    def _trace(self, batch: Batch) -> None:
        """One span per batch, linked to the calls it worked for."""
        links = [trace.Link(part.request.span) for part, _ in batch.outcomes if part.request.span.is_valid]
        if links:
            begin = time.time_ns() - int((time.monotonic() - batch.cut_at) * 1e9)
            name, facts = f"batch {self._name}", {"items": batch.size}
            _tracer.start_span(name, context.Context(), links=links, attributes=facts, start_time=begin).end()

    async def _watch_devices(self) -> None:
        """Detects a device that hangs, which its own thread cannot."""
        limit = self._settings.device_timeout_s
        while True:
            await asyncio.sleep(min(WATCHDOG_PERIOD_S, limit))
            for device in self._devices:
                since = device.busy_since
                if since is not None and time.monotonic() - since > limit:
                    self._fail(f"{device.name} has not answered for {limit:g} s")

    def _fail(self, reason: str) -> None:
        if self._closed not in (None, STOPPING):
            return
        self._closed = reason
        for request in list(self._live):
            message = f"{self._name}: {reason}; try another replica"
            self._resolve(request, RegionSearchError(Kind.UNAVAILABLE, message))
        self._on_fatal(reason)
