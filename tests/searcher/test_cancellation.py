"""Callers who leave: their searches never run. Real gRPC; the searching thread is held at a known place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.tensors import tensor_from_proto
from regionsearch.v1 import search_pb2_grpc
from services.searcher import __main__ as process_module
from services.searcher import searches
from services.searcher.bounded_executor import BoundedExecutor, CancellationToken
from services.searcher.call_groups import CallGroups
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.settings import EmbeddedSettings, SearcherSettings
from tests.searcher.conftest import connected, search_request, unit_vectors, upsert_request


@dataclass
class Held:
    """A searcher whose searching thread waits at a gate."""

    stub: search_pb2_grpc.SearchServiceAsyncStub
    engine: EmbeddedEngine
    groups: CallGroups
    gate: threading.Event
    executed: list[np.ndarray] = field(default_factory=list)

    def queue(self) -> list[tuple[np.ndarray, CancellationToken]]:
        """Who waits: for the pass that is to come, and for the next group."""
        jobs = list(self.engine._search._jobs)
        calls = [one.call for waiting in self.groups._waiting.values() for one in waiting]
        return [(job.request.vectors, job.cancellation) for job in jobs] + [
            (tensor_from_proto(call.request.queries, "queries"), call.cancellation) for call in calls
        ]

    async def waiting(self, count: int) -> None:
        """Until so many requests wait."""
        while len(self.queue()) != count:  # noqa: ASYNC110  # a thread changes it
            await asyncio.sleep(0.01)

    async def left(self, vectors: np.ndarray) -> None:
        """Until the searcher knows that nobody waits for these vectors any more."""
        while any(  # noqa: ASYNC110
            cancellation.refusal() is None and np.allclose(waiting, vectors, atol=1e-5)
            for waiting, cancellation in self.queue()
        ):
            await asyncio.sleep(0.01)

    def ran(self, vectors: np.ndarray) -> bool:
        return any(np.allclose(vectors, searched, atol=1e-5) for searched in self.executed)


@pytest.fixture
async def held(settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Held]:
    opened: list[EmbeddedEngine] = []
    groups: list[CallGroups] = []
    real_open, real_fetch = process_module.open_engine, VectorIndex.fetch

    def grouped(*arguments):
        groups.append(CallGroups(*arguments))
        return groups[-1]

    def open_engine(*arguments):
        opened.append(real_open(*arguments))
        return opened[-1]

    def fetch(index, requests):
        made.executed += [request.vectors for request in requests]
        return real_fetch(index, requests)

    monkeypatch.setattr(process_module, "open_engine", open_engine)
    monkeypatch.setattr(searches, "CallGroups", grouped)
    process = SearcherSettings(port=0, drain_delay_s=0, embedded=settings)
    async with connected(process) as stub:
        await stub.Upsert(upsert_request("a", unit_vectors(4)))
        made = Held(stub, opened[0], groups[0], threading.Event())
        monkeypatch.setattr(VectorIndex, "fetch", fetch)
        begun = threading.Event()

        def hold() -> None:
            begun.set()
            made.gate.wait()

        holder = threading.Thread(target=opened[0]._search.run, args=(hold,))
        holder.start()
        try:
            assert await asyncio.to_thread(begun.wait, 60)
            yield made
        finally:
            made.gate.set()
            holder.join()


async def test_a_cancelled_search_is_never_executed(held: Held) -> None:
    gone, stays = unit_vectors(1, seed=1), unit_vectors(1, seed=2)
    leaving, staying = held.stub.Search(search_request(gone)), held.stub.Search(search_request(stays))
    await held.waiting(2)
    leaving.cancel()
    await held.left(gone)
    held.gate.set()
    assert len((await staying).results[0].hits) == 4
    assert held.ran(stays)
    assert not held.ran(gone)
    assert not held.queue()


async def test_an_expired_search_is_never_executed(held: Held) -> None:
    gone, stays = unit_vectors(1, seed=1), unit_vectors(1, seed=2)
    staying = held.stub.Search(search_request(stays))
    await held.waiting(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await held.stub.Search(search_request(gone), timeout=0.5)
    assert from_rpc_error(caught.value).kind is Kind.DEADLINE_EXCEEDED
    await held.left(gone)
    held.gate.set()
    assert len((await staying).results[0].hits) == 4
    assert held.ran(stays)
    assert not held.ran(gone)


async def test_bounded_executor_counts_threads_whose_caller_has_left() -> None:
    calls, gate, cancellation = BoundedExecutor("test", 1, 0), threading.Event(), CancellationToken()
    begun = threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()

    task = asyncio.create_task(calls.run(work, cancellation))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    refusal = cancellation.refusal()
    assert refusal is not None
    assert refusal.kind is Kind.CANCELLED
    with pytest.raises(RegionSearchError) as caught:
        await calls.run(lambda: None)
    assert caught.value.kind is Kind.OVERLOADED
    gate.set()
    await asyncio.to_thread(calls.close)
