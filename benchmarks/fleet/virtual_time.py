"""Virtual time: coroutines that wait for hours end at once, in the order of their times.

What serves runs unchanged, on an ordinary event loop: the batcher with its queues, priorities, fairness and
admission. Two things are replaced: the clock, which jumps to the next timer whenever nothing else is left to
do, and the threads of a device, whose batches take virtual time instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from services.runtime.batch import Batch, BatchSlice
from services.runtime.batch_times import BatchTimes
from services.runtime.metrics import QueueMetrics
from services.runtime.ready_queue import ReadyQueue
from services.runtime.stages import DeviceThread


class _Clock(selectors.DefaultSelector):
    """A selector that never sleeps: it advances its own time by as much."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        """Now, in seconds."""
        return self.now

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen: every coroutine waits for another")
            self.now += max(0.0, timeout)
        return ready


class VirtualDevice(DeviceThread):
    """A device without threads: `device` returns the seconds that a batch takes.

    The real queue chooses the next batch.
    """

    def __init__(
        self,
        name: str,
        device: Callable[[Sequence[BatchSlice[Any]]], float],
        _finish: object,
        _classify: object,
        on_free: Callable[[DeviceThread, Batch], None],
        on_done: Callable[[Batch], None],
        _on_fatal: object,
        metrics: QueueMetrics,
        max_batch: int,
    ) -> None:
        self.name = name
        self.times = BatchTimes()
        self._seconds = device
        self._on_free = on_free
        self._on_done = on_done
        self._metrics = metrics
        self._max_batch = max_batch
        self._ready = ReadyQueue(max_batch)
        self._running: asyncio.Task[None] | None = None

    @property
    def busy_since(self) -> None:
        """A virtual device does not hang."""

    def put(self, batch: Batch) -> None:
        """Hands over a prepared batch."""
        self._ready.put(batch)
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run_all())

    async def _run_all(self) -> None:
        while self._ready:
            item = self._ready.get()
            assert item is not None
            batch, _ = item
            batch.prune_abandoned()
            if batch.parts:
                seconds = self._seconds(batch.parts)
                await asyncio.sleep(seconds)
                self._learn(batch, seconds)
            self._on_free(self, batch)
            self._complete(batch, [None] * len(batch.parts))
        self._running = None

    def close(self, timeout_s: float) -> None:
        """Nothing to end."""


@contextlib.contextmanager
def virtual_time() -> Iterator[asyncio.Runner]:
    """A runner whose coroutines live in virtual time, which begins at 0."""
    clock = _Clock()
    with (
        mock.patch.object(time, "monotonic", clock.time),
        mock.patch("services.runtime.batcher.DeviceThread", VirtualDevice),
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(clock)) as runner,
    ):
        yield runner
