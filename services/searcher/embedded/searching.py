"""The one thread that reads vectors: what many callers ask for is found in one pass."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from regionsearch.errors import Kind, RegionSearchError, overloaded
from services.searcher.callers import ANYBODY, Caller
from services.searcher.embedded.index import Fetch, Part, VectorIndex
from services.searcher.metrics import PASS_QUERIES

T = TypeVar("T")


@dataclass(slots=True)
class _Job:
    index: VectorIndex
    request: Fetch
    caller: Caller
    future: Future[list[Part]] = field(default_factory=Future)


@dataclass(slots=True)
class _Action(Generic[T]):
    action: Callable[[], T]
    future: Future[T] = field(default_factory=Future)

    def run(self) -> None:
        try:
            self.future.set_result(self.action())
        except BaseException as error:
            self.future.set_exception(error)


class SearchThread:
    """Merges requests into passes. While one pass runs the next one gathers, so nobody is delayed on purpose.

    Requests whose callers have left, or whose deadlines have passed, leave when the next pass gathers.

    One thread owns the device: FAISS's GPU indexes are not safe for several, not even for reading.

    Args:
        max_batch: Query vectors in one pass.
        max_pending: Waiting requests above which further ones are refused.
    """

    def __init__(self, max_batch: int = 64, max_pending: int = 4096) -> None:
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._jobs: deque[_Job] = deque()
        self._actions: deque[_Action[Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    def submit(self, index: VectorIndex, request: Fetch, caller: Caller = ANYBODY) -> Future[list[Part]]:
        """Queues a request. It fails with CANCELLED or DEADLINE_EXCEEDED when its caller leaves in time.

        Raises:
            RegionSearchError: OVERLOADED; UNAVAILABLE while stopping.
        """
        job = _Job(index, request, caller)
        with self._changed:
            if self._closing:
                raise RegionSearchError(Kind.UNAVAILABLE, "the searcher is stopping", retry_after_s=1.0)
            if len(self._jobs) >= self._max_pending:
                raise overloaded(f"{len(self._jobs)} searches are waiting", retry_after_s=0.1)
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def run(self, action: Callable[[], T]) -> T:
        """Runs something on the searching thread, between two passes, and waits for it."""
        job = _Action(action)
        with self._changed:
            if self._closing:
                raise RegionSearchError(Kind.UNAVAILABLE, "the searcher is stopping", retry_after_s=1.0)
            self._actions.append(job)
            self._changed.notify()
        return job.future.result()

    def post(self, action: Callable[[], None]) -> None:
        """Has something run on the searching thread, between two passes, and does not wait for it."""
        with self._changed:
            self._actions.append(_Action(action))
            self._changed.notify()

    def close(self) -> None:
        """Answers what is waiting and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            jobs = self._gather()
            while self._actions:
                self._actions.popleft().run()
            if not jobs and self._closing:
                return
            if not jobs:
                continue
            PASS_QUERIES.observe(len(jobs))
            index = jobs[0].index
            try:
                found = index.fetch([job.request for job in jobs])
            except BaseException as error:
                for job in jobs:
                    job.future.set_exception(error)
            else:
                for job, parts in zip(jobs, found, strict=True):
                    job.future.set_result(parts)

    def _gather(self) -> list[_Job]:
        """Waits for a request and takes it with all others to its index that fit, if there is any."""
        with self._changed:
            while not (self._jobs or self._actions or self._closing):
                self._changed.wait()
            taken: list[_Job] = []
            left: deque[_Job] = deque()
            room = self._max_batch
            for job in self._jobs:
                refusal = job.caller.refusal()
                if refusal is not None:  # it leaves before it costs anything
                    job.future.set_exception(refusal)
                    continue
                size = len(job.request.vectors)
                if not taken or (job.index is taken[0].index and size <= room):
                    taken.append(job)
                    room -= size
                else:
                    left.append(job)
            self._jobs = left
            return taken
