"""Searches that are answered together: each is read, cancelled and refused by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc
from services.searcher import searches
from services.searcher.bounded_executor import CancellationToken
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.embedded.index.live_queries import QueryKind
from services.searcher.embedded.index.vector_index import VectorIndex
from services.searcher.embedded.queries import filter_compiler, result_pages
from services.searcher.engine import SearchCall
from services.searcher.queries import Page, Query
from services.searcher.response_budget import ResponseBudget, ResponseMemory
from tests.searcher.conftest import DIMENSION, MODEL, ingest, search_request, unit_vectors
from tests.searcher.test_store_damage import NOTHING, change, write


def query(seed: int, **options: object) -> Query:
    return Query(unit_vectors(1, seed), NOTHING, limit=4, **options)


def call(seed: int = 0, **options: object) -> SearchCall:
    return SearchCall(MODEL, [query(seed)], **options)


def kinds(outcomes: Sequence[list[Page] | Exception]) -> list[Kind | type | None]:
    return [
        None if isinstance(one, list) else one.kind if isinstance(one, RegionSearchError) else type(one)
        for one in outcomes
    ]


def test_the_error_of_one_search_is_its_own(engine: EmbeddedEngine) -> None:
    for image_id in ("one", "two"):
        write(engine, image_id)
    gone, memory = CancellationToken(), ResponseMemory(1)
    gone.cancel()
    memory.draw(ResponseBudget(100, memory=memory), 1)
    sound = [call(seed) for seed in range(3)]
    failing = {
        Kind.FAILED_PRECONDITION: call(min_seq=99),
        Kind.MODEL_MISMATCH: replace(call(), model=replace(MODEL, weights_digest="other")),
        Kind.ABORTED: SearchCall(MODEL, [query(0, generation="other")]),
        Kind.CANCELLED: call(cancellation=gone),
        Kind.DEADLINE_EXCEEDED: call(cancellation=CancellationToken(0.0)),
        Kind.TOO_LARGE: call(budget=ResponseBudget(100)),
        Kind.OVERLOADED: call(budget=ResponseBudget(1e6, memory=memory)),
    }
    calls = [sound[0], *failing.values(), sound[1], SearchCall(MODEL, [query(0, seq=99)]), sound[2]]
    outcomes = list(engine.search_together("default", calls))
    assert kinds(outcomes) == [None, *failing, None, Kind.ABORTED, None]
    expected = [engine.search("default", MODEL, one.queries) for one in sound]
    assert [one for one in outcomes if isinstance(one, list)] == expected
    assert not engine._horizon._held, "all let go"


def test_a_damaged_row_is_missing_in_every_answer_and_hides_no_other(engine: EmbeddedEngine) -> None:
    for image_id in ("one", "two"):
        write(engine, image_id)
    change(engine, "UPDATE image SET name = 'other' WHERE image_id = 'two'")
    for found in engine.search_together("default", [call(seed) for seed in range(3)]):
        assert isinstance(found, list)
        assert {hit.image.image_id for hit in found[0].hits} == {"one"}


def test_a_search_that_runs_out_of_memory_fails_alone(engine: EmbeddedEngine, monkeypatch) -> None:
    write(engine, "one")
    real = result_pages.rank_diverse
    calls = [call(seed) for seed in range(3)]

    def ranked(query, source):
        if query is calls[1].queries[0]:
            raise MemoryError
        return real(query, source)

    monkeypatch.setattr(result_pages, "rank_diverse", ranked)
    assert kinds(list(engine.search_together("default", calls))) == [None, MemoryError, None]


def test_searches_share_one_pass_and_each_is_noted(engine: EmbeddedEngine, passes: list[int]) -> None:
    write(engine, "one")
    assert kinds(list(engine.search_together("default", [call(seed) for seed in range(9)]))) == [None] * 9
    assert passes == [9]
    live = engine._collections.find("default").index.live
    assert sum(live.count(kind) for kind in QueryKind) == 9


def test_what_all_searches_have_in_common_is_raised(engine: EmbeddedEngine) -> None:
    with pytest.raises(RegionSearchError) as caught:
        list(engine.search_together("other", [call(), call()]))
    assert caught.value.kind is Kind.NOT_FOUND
    with engine._restore_lock.exclusive("restoring"), pytest.raises(RegionSearchError) as caught:
        list(engine.search_together("default", [call(), call()]))
    assert caught.value.kind is Kind.UNAVAILABLE


@dataclass
class Held:
    """A searcher whose first pass waits at a gate.

    Attributes:
        arrived: Searches that may wait for each other.
        passes: How many searches each had.
    """

    stub: search_pb2_grpc.SearchServiceAsyncStub
    vectors: np.ndarray
    begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    arrived: int = 0
    passes: list[int] = field(default_factory=list)

    async def waiting(self, *requests: search_pb2.SearchRequest):
        """Calls that wait for a first one, which is held up."""
        calls = [self.stub.Search(search_request(self.vectors[:1]))]
        assert await asyncio.to_thread(self.begun.wait, 60)
        calls += [self.stub.Search(request) for request in requests]
        while self.arrived < len(calls):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return calls[1:]


@pytest.fixture
async def held(stub, monkeypatch) -> AsyncIterator[Held]:
    made = Held(stub, (await ingest(stub, 6)).reshape(-1, DIMENSION))
    fetch, run = VectorIndex.fetch, searches.CallGroups.run

    def held_fetch(index, requests):
        made.passes.append(len(requests))
        if not made.begun.is_set():
            made.begun.set()
            assert made.may_end.wait(60)
        return fetch(index, requests)

    async def noted_run(self, *arguments):
        made.arrived += 1
        return await run(self, *arguments)

    monkeypatch.setattr(VectorIndex, "fetch", held_fetch)
    monkeypatch.setattr(searches.CallGroups, "run", noted_run)
    yield made
    made.may_end.set()


async def test_searches_that_wait_are_answered_together_and_as_alone(held: Held) -> None:
    options = [{}, {"page_size": 3}, {"min_score": 0.1}, {"relative_cutoff": 0.8}, {"min_seq": 6}]
    sound = [search_request(held.vectors[at : at + 1], **fields) for at, fields in enumerate(options)]
    unsound = [
        search_request(held.vectors[:1], min_score=np.nan),
        search_request(held.vectors[:1], min_seq=99),
    ]
    *answers, unread, early = await held.waiting(*sound, *unsound)
    held.may_end.set()
    together = [await answer for answer in answers]
    for failed, kind in ((unread, Kind.INVALID_ARGUMENT), (early, Kind.FAILED_PRECONDITION)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await failed
        assert from_rpc_error(caught.value).kind is kind
    assert held.passes == [1, 5]
    assert together == [await held.stub.Search(request) for request in sound]


async def test_other_searches_wait_for_no_group(held: Held, monkeypatch) -> None:
    compiling, may_go_on = threading.Event(), threading.Event()
    real = filter_compiler.compile_filter

    def slow(*arguments):
        compiling.set()
        assert may_go_on.wait(60)
        return real(*arguments)

    def request(**fields: object) -> search_pb2.SearchRequest:
        return search_request(held.vectors[:1], **fields)

    held.begun.set()  # no pass is held up
    monkeypatch.setattr(filter_compiler, "compile_filter", slow)
    filtered = held.stub.Search(request(filter=search_pb2.Filter(image_ids=["image00"])))
    assert await asyncio.to_thread(compiling.wait, 60)
    assert (await held.stub.Search(request())).results[0].hits, "whatever another filter costs"
    may_go_on.set()
    assert (await filtered).results[0].hits
    page = (await held.stub.Search(request(page_size=2))).results[0].next_page_token
    before = held.arrived
    for fields in (
        {"page_size": 500}, {"page_size": 2, "page_token": page}, {"include_masks": True}, {"exact": True},
        {"effort": 2.0}, {"fold_similarity": 0.9}, {"negatives": tensor_to_proto(held.vectors[1:2])},
        {"filter": search_pb2.Filter(image_ids=["image00", *(f"other{i}" for i in range(500))])},
        {"query_record_ids": ["image00-000"]},
    ):  # fmt: skip
        assert (await held.stub.Search(request(**fields))).results[0].hits
    await held.stub.Search(search_request(held.vectors[:2]))
    assert held.arrived == before, "expensive ones have threads of their own"
