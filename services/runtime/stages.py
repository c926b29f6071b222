"""The three overlapped stages of a batch, in threads: prepare → device → finish.

prepare runs in a pool, once per request; one thread per device runs the model; finish converts results while
the device runs the next batch, in one thread for each priority, so that a small answer does not wait for a
large one. Knows nothing of asyncio: `batcher.py` feeds it, and receives the outcome of every slice.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import heapq
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from regionsearch.errors import Kind, RegionSearchError
from services.runtime.batch import (
    Batch,
    BatchSlice,
    Priority,
    QueueEntry,
    bisect_requests,
    split_items,
)
from services.runtime.batch_times import BatchTimes
from services.runtime.metrics import QueueMetrics
from services.runtime.ready_queue import ReadyQueue

MAX_EXPECT_S = 0.05  # longest time that a device idles for the next piece of a caller's only call

_log = structlog.get_logger(__name__)


class Failure(enum.Enum):
    """What an exception of a stage means; services decide through `classify`."""

    POISON = "poison"  # one request of the batch is at fault: find it, answer the others
    OUT_OF_MEMORY = "out of memory"  # the batch is too large: retry in halves
    FATAL = "fatal"  # the device is lost: its results cannot be trusted, the process must end


def always_poison(error: Exception) -> Failure:
    """Classification for stages without a device."""
    return Failure.POISON


class PreparePool:
    """Prepares the requests of batches, each once, and passes a batch on when its last request is ready.

    A batch does not wait long for a request that takes long, such as a large image: what is prepared goes on
    before it (:meth:`split`).

    Requests of a batch whose callers have no other request go before those of callers with many, whose images
    may take long; among equals it is first come, first served.
    """

    def __init__(self, name: str, prepare: Callable[[Any], Any], threads: int, metrics: QueueMetrics) -> None:
        self._prepare = prepare
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"{name}-prepare")
        self._lock = threading.Lock()
        self._waiting: list[tuple[bool, int, QueueEntry, Batch, Callable[[Batch], None]]] = []
        self._arrivals = 0
        self._metrics = metrics

    def put(self, batch: Batch, then: Callable[[Batch], None]) -> None:
        """Prepares in the pool; `then` is called from one of its threads, or at once if nothing is left."""
        requests = list(dict.fromkeys(part.request for part in batch.parts if part.request.lock is not None))
        if not requests:
            then(batch)
            return
        batch.preparing = len(requests)
        with self._lock:
            for request in requests:
                self._arrivals += 1
                heapq.heappush(self._waiting, (not batch.sparse, self._arrivals, request, batch, then))
        for _ in range(min(self._threads, len(requests))):
            self._pool.submit(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:  # other threads took the rest
                    return
                _, _, request, batch, then = heapq.heappop(self._waiting)
                batch.prepared_from = batch.prepared_from or time.monotonic()
            if not request.done:
                self._prepare_once(request)
            with self._lock:
                batch.preparing -= 1
                last = batch.preparing == 0
            if last:
                self._metrics.prepare.observe(time.monotonic() - batch.prepared_from)
                then(batch)
            del request, batch, then  # an idle thread must not keep the last request alive

    def split(self, batch: Batch, then: Callable[[Batch], None]) -> bool:
        """Passes on what of a batch is prepared; returns whether the batch is still waited for."""
        with self._lock:
            waited_for = batch.preparing > 0
            early = batch.split_prepared() if waited_for else None
        if early is not None:
            then(early)
        return waited_for

    def _prepare_once(self, request: QueueEntry) -> None:
        lock = request.lock
        if lock is None:
            return
        with lock:
            if request.lock is None:  # another batch with a slice of this request prepared it
                return
            try:
                request.prepared = self._prepare(request.payload)
            except Exception as error:
                request.prepare_error = error
            except BaseException as error:  # the pool would swallow it, and the batch would never continue
                request.prepare_error = RuntimeError(f"preparing ended with {error!r}")
            request.payload = None
            request.lock = None

    def close(self) -> None:
        """Finishes what was submitted; abandoned requests are no longer prepared."""
        self._pool.shutdown(wait=True)


class DeviceThread:
    """One device with the thread that owns it and the threads that finish its batches.

    Args:
        name: For the threads.
        device: Runs a batch on the device; called from one thread only.
        finish: Turns what `device` returned into one result per slice; None where `device` returns these.
        classify: What an exception means.
        on_free: Called when the device is done with a batch and finish has started on it, so that no batches
            pile up between the two.
        on_done: Called with a batch whose outcomes are complete.
        on_fatal: Called with the reason when a thread has died.
        metrics: For stage times and failures.
        max_batch: Most items of small batches that run as one.

    Attributes:
        times: How long its batches take.
    """

    def __init__(
        self,
        name: str,
        device: Callable[[Sequence[BatchSlice[Any]]], Any],
        finish: Callable[[Any], Sequence[Any]] | None,
        classify: Callable[[Exception], Failure],
        on_free: Callable[[DeviceThread, Batch], None],
        on_done: Callable[[Batch], None],
        on_fatal: Callable[[str], None],
        metrics: QueueMetrics,
        max_batch: int,
    ) -> None:
        self.name = name
        self.times = BatchTimes()
        self._device = device
        self._finish = finish
        self._classify = classify
        self._on_free = on_free
        self._on_done = on_done
        self._on_fatal = on_fatal
        self._metrics = metrics
        self._max_batch = max_batch
        self._ready = ReadyQueue(max_batch)
        self._raw: dict[Priority, queue.SimpleQueue[tuple[Batch, Any] | None]] = {}
        loops: dict[str, Callable[[], None]] = {"device": self._device_loop}
        for priority in Priority if finish else ():
            self._raw[priority] = queue.SimpleQueue()
            stage = f"finish-{priority.name.lower()}"
            loops[stage] = functools.partial(self._finish_loop, stage, self._raw[priority])
        self._busy_since: dict[str, float | None] = dict.fromkeys(loops)
        self._threads = [
            threading.Thread(target=self._guard, args=(loop,), name=f"{name}-{stage}", daemon=True)
            for stage, loop in loops.items()
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy_since(self) -> float | None:
        """Start of the longest-running batch of any stage (monotonic clock); None while idle."""
        return min((since for since in self._busy_since.values() if since is not None), default=None)

    def put(self, batch: Batch) -> None:
        """Hands over a prepared batch; from any thread."""
        self._ready.put(batch)

    def close(self, timeout_s: float) -> None:
        """Ends the threads once their batches are done; a thread that hangs is left behind."""
        deadline = time.monotonic() + timeout_s
        self._ready.close()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _guard(self, loop: Callable[[], None]) -> None:
        """Reports a stage that dies as fatal: without it no call would ever be answered."""
        name = threading.current_thread().name
        try:
            loop()
        except BaseException as error:
            self._on_fatal(f"{name} died: {type(error).__name__}: {error}")
            _log.exception("stage died", stage=name)

    def _device_loop(self) -> None:
        while (item := self._ready.get()) is not None:
            with self._busy("device"):
                self._work(*item)
            del item  # an idle thread must not keep the images and device memory of its last batch alive
        for finishing in self._raw.values():
            finishing.put(None)

    def _work(self, batch: Batch, late_error: Exception | None) -> None:
        begin = time.monotonic()
        batch.prune_abandoned()
        if late_error is not None:
            batch.outcomes += self._isolate(batch.parts, late_error)
            batch.parts = []
        raw = self._run(batch) if batch.parts else None
        if batch.parts:
            self._learn(batch, time.monotonic() - begin)
            if batch.sparse and (more := [p.request.caller for p in batch.parts if p.request.more]):
                self._ready.expect(more, min(MAX_EXPECT_S, self.times.mean / 2))
            if self._finish is not None:
                self._raw[batch.priority].put((batch, raw))
                return
        if late_error is None:  # a batch that comes back from finish has freed its slot
            self._on_free(self, batch)
        if batch.parts:
            self._complete(batch, raw)
        else:
            self._on_done(batch)

    def _run(self, batch: Batch) -> Any:
        """Runs the batch on the device; if that fails, isolates the fault and empties the batch."""
        try:
            return self._device(batch.parts)
        except Exception as error:
            batch.outcomes += self._isolate(batch.parts, error)
            batch.parts = []
            return None

    def _finish_loop(self, stage: str, finishing: queue.SimpleQueue[tuple[Batch, Any] | None]) -> None:
        while (item := finishing.get()) is not None:
            with self._busy(stage):
                self._finish_batch(*item)
            del item

    @contextlib.contextmanager
    def _busy(self, stage: str) -> Iterator[None]:
        self._busy_since[stage] = time.monotonic()
        try:
            yield
        finally:
            self._busy_since[stage] = None

    def _finish_batch(self, batch: Batch, raw: Any) -> None:
        assert self._finish is not None
        self._on_free(self, batch)
        try:
            with self._metrics.finish.time():
                results = self._finish(raw)
        except Exception as error:  # an asynchronous device may raise its errors only here
            self._ready.put(batch, error)
        else:
            self._complete(batch, results)

    def _complete(self, batch: Batch, results: Any) -> None:
        try:
            pairs = list(zip(batch.parts, results, strict=True))
        except (TypeError, ValueError) as error:
            mismatch = RuntimeError(f"a stage did not return one result per part: {error}")
            self._ready.put(batch, mismatch)
            return
        batch.outcomes += pairs
        self._on_done(batch)

    def _learn(self, batch: Batch, seconds: float) -> None:
        items = sum(part.size for part in batch.parts)
        self._metrics.device.observe(seconds)
        self._metrics.fill.observe(items / self._max_batch)
        self.times.learn(items, seconds)

    def _isolate(self, parts: list[BatchSlice[Any]], error: Exception) -> list[tuple[BatchSlice[Any], Any]]:
        """Finds the request at fault, or a size that fits, by bisection; on the device thread."""
        _clear_frames(error)
        failure = self._classify(error)
        if failure is Failure.FATAL:
            raise error
        if failure is Failure.OUT_OF_MEMORY:
            self._metrics.halved.inc()
            halves = split_items(parts)
        else:
            self._metrics.bisected.inc()
            halves = bisect_requests(parts)
        if halves is None:
            self._metrics.failed.inc()
            return [
                (part, _too_large(error) if failure is Failure.OUT_OF_MEMORY else error) for part in parts
            ]
        outcomes: list[tuple[BatchSlice[Any], Any]] = []
        for half in halves:
            wanted = [part for part in half if not part.abandoned]
            if not wanted:
                continue
            try:
                results = self._device(wanted)
                if self._finish is not None:
                    results = self._finish(results)
                outcomes += list(zip(wanted, results, strict=True))
            except Exception as caught:
                outcomes += self._isolate(wanted, caught)
        return outcomes


def _clear_frames(error: BaseException | None) -> None:
    """Releases what the frames of a failed attempt hold: the next attempt needs that memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _too_large(cause: Exception) -> RegionSearchError:
    error = RegionSearchError(
        Kind.TOO_LARGE,
        "a single item does not fit into the device's memory; send a smaller image or region, or run the "
        "service on a device with more memory",
    )
    error.__cause__ = cause
    return error
