"""The search threads: many callers' requests to one collection share one pass over its vectors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from regionsearch.errors import Kind, RegionSearchError, overloaded
from services.searcher.bounded_executor import CancellationToken
from services.searcher.embedded.index.segments import EXACT
from services.searcher.embedded.index.vector_index import Part, VectorIndex, VectorQuery
from services.searcher.metrics import PASS_QUERIES

T = TypeVar("T")


@dataclass(slots=True)
class _Job:
    index: VectorIndex
    request: VectorQuery
    cancellation: CancellationToken
    future: Future[list[Part]] = field(default_factory=Future)

    @property
    def pass_(self) -> tuple[int, bool]:
        """Jobs of the same pass are answered together: those of one index that take equally long."""
        return id(self.index), self.request.effort == EXACT


@dataclass(slots=True)
class _Action(Generic[T]):
    action: Callable[[], T]
    future: Future[T] = field(default_factory=Future)

    def run(self) -> None:
        try:
            self.future.set_result(self.action())
        except BaseException as error:
            self.future.set_exception(error)


class SearchThreads:
    """Merges requests into passes. While one pass runs the next one gathers: no delay is added.

    Requests whose callers have left, or whose deadlines have passed, leave when the next pass gathers.
    The passes over one collection follow each other, and the request that has waited longest is next: so many
    requests to one collection delay those to others by one pass at most. Exhaustive searches have passes of
    their own, and leave a thread to the quick ones.

    Args:
        max_batch: Query vectors in one pass.
        max_pending: Waiting requests above which further ones are refused.
        threads: Passes at once. One where a device is used: FAISS's GPU indexes are not safe for several
            threads, not even for reading.
        own_threads: Whether callers may make passes on their own threads, too; not where a device is used.
    """

    def __init__(
        self, max_batch: int = 64, max_pending: int = 4096, threads: int = 1, *, own_threads: bool = False
    ) -> None:
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._jobs: deque[_Job] = deque()
        self._actions: deque[_Action[Any]] = deque()
        self._passes: set[tuple[int, bool]] = set()
        self._busy = 0  # passes and actions in progress
        self._own_threads = own_threads
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name="search", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, index: VectorIndex, requests: Sequence[tuple[VectorQuery, CancellationToken]]
    ) -> list[Future[list[Part]]]:
        """Queues requests, each with what cancels it: CANCELLED or DEADLINE_EXCEEDED while it waits.

        Where nobody waits, the caller makes their first pass itself: handing them to another thread and back
        costs more than a quick search.

        Raises:
            RegionSearchError: UNAVAILABLE while stopping. OVERLOADED is the result of single requests.
        """
        jobs = [_Job(index, request, cancellation) for request, cancellation in requests]
        with self._changed:
            if self._closing:
                raise RegionSearchError(Kind.UNAVAILABLE, "the searcher is stopping", retry_after_s=1.0)
            overtakes = self._jobs or self._actions
            free = max(0, self._max_pending - len(self._jobs))
            for job in jobs[free:]:
                job.future.set_exception(
                    overloaded(f"{len(self._jobs)} searches are waiting", retry_after_s=0.1)
                )
            self._jobs.extend(jobs[:free])
            mine = self._take() if self._own_threads and not overtakes else []
            if self._jobs:
                self._changed.notify()
        if mine:
            self._answer(mine)
        return [job.future for job in jobs]

    def run(self, action: Callable[[], T]) -> T:
        """Runs something on a search thread between two passes, and waits for it; at once if this is one."""
        if threading.current_thread() in self._threads:
            return action()
        job = _Action(action)
        with self._changed:
            if self._closing:
                raise RegionSearchError(Kind.UNAVAILABLE, "the searcher is stopping", retry_after_s=1.0)
            self._actions.append(job)
            self._changed.notify()
        return job.future.result()

    def post(self, action: Callable[[], None]) -> None:
        """Runs something on a search thread between two passes, without waiting for it."""
        with self._changed:
            self._actions.append(_Action(action))
            self._changed.notify()

    def close(self) -> None:
        """Answers what is waiting and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._gather()) is not None:
            if isinstance(work, list):
                self._answer(work)
                continue
            work.run()
            with self._changed:
                self._busy -= 1

    def _answer(self, jobs: list[_Job]) -> None:
        """Makes the pass of jobs that have begun."""
        PASS_QUERIES.observe(len(jobs))
        try:
            found = jobs[0].index.fetch([job.request for job in jobs])
        except BaseException as error:
            for job in jobs:
                job.future.set_exception(error)
        else:
            for job, parts in zip(jobs, found, strict=True):
                job.future.set_result(parts)
        with self._changed:
            self._busy -= 1
            self._passes.remove(jobs[0].pass_)
            self._changed.notify_all()

    def _begin(self, jobs: list[_Job]) -> None:
        self._busy += 1
        self._passes.add(jobs[0].pass_)

    def _gather(self) -> list[_Job] | _Action[Any] | None:
        """Waits for an action, or for a request that can have a pass, with all others that fit into it.

        None at the end.
        """
        with self._changed:
            while True:
                if self._actions:
                    self._busy += 1
                    return self._actions.popleft()
                if taken := self._take():
                    return taken
                if self._closing and not self._jobs:
                    return None
                self._changed.wait()

    def _take(self) -> list[_Job]:
        taken: list[_Job] = []
        left: deque[_Job] = deque()
        if self._busy >= len(self._threads):  # callers make passes
            return taken
        free = self._max_batch
        for job in self._jobs:
            refusal = job.cancellation.refusal()
            if refusal is not None:  # it leaves before it costs anything
                job.future.set_exception(refusal)
                continue
            size = len(job.request.vectors)
            if (job.pass_ == taken[0].pass_ and size <= free) if taken else self._may_begin(job.pass_):
                taken.append(job)
                free -= size
            else:
                left.append(job)
        self._jobs = left
        if taken:
            self._begin(taken)
        return taken

    def _may_begin(self, pass_: tuple[int, bool]) -> bool:
        exhaustive = sum(long for _, long in self._passes)
        crowded = pass_[1] and 0 < exhaustive >= len(self._threads) - 1
        return pass_ not in self._passes and not crowded
