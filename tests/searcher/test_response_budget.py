"""What one request may cost: the size of its answer, and its time on the one searching thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError, from_rpc_error
from regionsearch.rpc.calls import acall
from regionsearch.tensors import mask_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2
from services.runtime.server import serving
from services.searcher.__main__ import SERVICES, searcher
from services.searcher.candidates import Candidates, Numbers
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Query
from services.searcher.ranking import RELEVANT_AMONG, rank
from services.searcher.response_budget import ResponseBudget, ResponseMemory
from services.searcher.settings import EmbeddedSettings, SearcherSettings
from tests.searcher.conftest import (
    DIMENSION,
    MODEL,
    connected,
    search_request,
    unit_vectors,
    upsert_request,
)
from tests.searcher.test_store_faults import NOTHING, write
from tests.waiting import wait_for

CAP = 60_000


def with_masks(image_id: str, regions: int) -> search_pb2.UpsertRequest:
    """Regions with masks of noise, of about 2 KB each."""
    request = upsert_request(image_id, unit_vectors(regions + 1))
    noise = np.random.default_rng(0).random((regions, 64, 64)) < 0.5
    for record, mask in zip(request.records[1:], noise, strict=True):
        record.mask.CopyFrom(mask_to_proto(mask))
    return request


async def test_an_answer_too_large_for_a_message_names_the_field(settings: EmbeddedSettings) -> None:
    process = SearcherSettings(
        port=0, drain_delay_s=0, embedded=settings, max_message_bytes=CAP, limits={"max_metadata_bytes": CAP}
    )
    async with connected(process) as stub:
        names = [f"image{number}" for number in range(5)]
        for name in names:
            await stub.Upsert(with_masks(name, 10))
        long = upsert_request("long", unit_vectors(1), tags=tuple(f"{n:04d}" * 500 for n in range(20)))
        await stub.Upsert(long)
        long.images[0].image_id = long.records[0].image_id = long.records[0].record_id = "longer"
        await stub.Upsert(long)
        many = search_request(unit_vectors(40), page_size=50)
        for request, method, field, less in (
            (many, stub.Search, "page_size", {"page_size": 5}),
            (
                search_pb2.GetRecordsRequest(collection="default", image_ids=names, include_masks=True),
                stub.GetRecords, "image_ids", {"include_masks": False},
            ),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request)
            error = from_rpc_error(caught.value)
            assert (error.kind, error.field) == (Kind.TOO_LARGE, field)
            assert f"over {CAP} bytes" in error.message
            assert "fewer" in error.message
            for name, value in less.items():
                setattr(request, name, value)
            assert (await method(request)).ByteSize() <= CAP


def test_answers_in_progress_share_a_budget_until_they_are_sent() -> None:
    memory = ResponseMemory(1 << 20)
    first, second, third = (ResponseBudget(1 << 30, memory=memory) for _ in range(3))
    first.take(3 << 20)  # alone it may exceed the limit
    with pytest.raises(RegionSearchError, match=r"3 MiB.*max_read_bytes") as caught:
        second.take(1)
    assert caught.value.kind is Kind.OVERLOADED
    assert caught.value.retry_after_s
    memory.give_back(first)
    first.take(5 << 20)  # its caller has left, and its thread has yet to notice
    second.take(400_000)
    third.take(400_000)
    with pytest.raises(RegionSearchError):
        third.take(400_000)
    memory.give_back(third)
    second.take(400_000)
    memory.give_back(second)
    assert memory.held == 0


async def test_what_answers_took_is_given_back_when_they_are_sent(settings: EmbeddedSettings) -> None:
    process = SearcherSettings(port=0, drain_delay_s=0, embedded=settings, max_read_bytes=1)
    async with connected(process) as stub:
        await stub.Upsert(with_masks("image", 10))
        # The server may hear a moment later than we that an answer has arrived: calls are repeated then.
        for _ in range(3):
            await acall(stub.Search, search_request(unit_vectors(1), page_size=5))
            records = search_pb2.GetRecordsRequest(collection="default", image_ids=["image"])
            await acall(stub.GetRecords, records)
            await acall(stub.ListImages, search_pb2.ListImagesRequest(collection="default"))


async def test_pages_end_early_where_the_next_item_would_not_fit(settings: EmbeddedSettings) -> None:
    """What one writer stored makes no list unreadable: pages get shorter, and none lacks anything."""
    process = SearcherSettings(
        port=0, drain_delay_s=0, embedded=settings, max_message_bytes=CAP, limits={"max_metadata_bytes": CAP}
    )
    async with connected(process) as stub:
        for number in range(5):
            long = tuple(f"{n:04d}" * 500 for n in range(20))
            tags = long if number % 2 else tuple("é" * n for n in range(1, 60))
            await stub.Upsert(upsert_request(f"image{number}", unit_vectors(1, seed=number), tags=tags))
        await stub.Upsert(with_masks("masks", 20))
        listing = search_pb2.ListImagesRequest(collection="default")
        search = search_request(unit_vectors(1), page_size=1000, include_masks=True)
        images: list[str] = []
        records: list[str] = []
        while True:
            page = await stub.ListImages(listing)
            assert 0 < page.ByteSize() <= CAP
            images += [image.image_id for image in page.images]
            listing.page_token = page.next_page_token
            if not listing.page_token:
                break
        while True:
            answer = await stub.Search(search)
            assert 0 < answer.ByteSize() <= CAP
            records += [hit.record.record_id for hit in answer.results[0].hits]
            search.page_token = answer.results[0].next_page_token
            if not search.page_token:
                break
        assert images == ["masks", *(f"image{number}" for number in (4, 3, 2, 1, 0))]
        assert len(records) == len(set(records)) == 26


async def test_collections_come_in_several_pages_where_one_would_not_fit(settings: EmbeddedSettings) -> None:
    process = SearcherSettings(port=0, drain_delay_s=0, embedded=settings, max_message_bytes=CAP)
    async with (
        serving(process, SERVICES, searcher(process)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        model = types_pb2.ModelInfo(variant="v" * 4000, family="f" * 4000, dimension=4)
        for number in range(10):
            await stub.CreateCollection(search_pb2.CreateCollectionRequest(name=f"c{number}", model=model))
        names: list[str] = []
        request = search_pb2.ListCollectionsRequest()
        while request.page_token or not names:
            page = await stub.ListCollections(request)
            assert page.ByteSize() <= CAP
            names += [collection.name for collection in page.collections]
            request.page_token = page.next_page_token
        assert names == [f"c{number}" for number in range(10)]


@pytest.mark.parametrize("vectors", [False, True])
def test_records_are_not_read_beyond_the_response_budget(engine: EmbeddedEngine, vectors: bool) -> None:
    write(engine, "a", 100)
    budget = ResponseBudget(300, "image_ids", "name fewer")
    with pytest.raises(RegionSearchError, match="name fewer"):
        engine.get_records("default", [], ["a"], masks=True, vectors=vectors, budget=budget)
    assert len(engine.get_records("default", [], ["a"], masks=True, vectors=vectors).records) == 100


class NothingRelevant:
    """A large collection of which everything is nearer to the negative."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.asked: list[int] = []

    def best(self, count: int) -> Candidates:
        self.asked.append(count)
        rows = np.arange(count)
        scores = np.stack([0.9 - rows * 1e-7, np.ones(count)], axis=1).astype(np.float32)
        return Candidates(rows, rows, np.full(count, 2, np.uint8), scores, complete=False)

    def of_images(self, images: Numbers) -> Candidates:
        raise AssertionError("no image passes")

    def public_ids(self, keys: Iterable[int]) -> dict[int, tuple[str, str]]:
        return {key: (f"i{key}", f"r{key}") for key in keys}


@pytest.mark.parametrize("skipped", [0, 10 * RELEVANT_AMONG])
def test_a_search_without_relevant_records_does_not_score_the_whole_collection(skipped: int) -> None:
    source = NothingRelevant(skipped)
    query = Query(unit_vectors(1), unit_vectors(1), skipped=skipped)
    assert rank(query, source) == ([], False)
    assert max(source.asked) == max(RELEVANT_AMONG, source.asked[0])


def test_the_queries_of_one_request_share_a_search_pass(engine: EmbeddedEngine, passes: list[int]) -> None:
    write(engine, "a", 40)
    vectors = unit_vectors(8, seed=1, dimension=DIMENSION)
    queries = [Query(vectors[i : i + 1], NOTHING, limit=3) for i in range(8)]
    begun, gate = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait()

    with ThreadPoolExecutor(2) as pool:
        pool.submit(engine._search.run, hold)
        assert begun.wait(60)
        asked = pool.submit(engine.search, "default", MODEL, queries)
        try:
            wait_for(lambda: len(engine._search._jobs) == 8)
        finally:
            gate.set()
        together = asked.result()
    assert passes == [8]
    alone = [engine.search("default", MODEL, [query])[0] for query in queries]
    assert [page.hits for page in together] == [page.hits for page in alone]
