"""Pages and page tokens over gRPC: one ranking, forged and outdated tokens refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from regionsearch.errors import Kind
from regionsearch.v1 import search_pb2
from services.searcher.search_requests import PageTokens
from tests.searcher.conftest import (
    MODEL_INFO,
    failing,
    image_count,
    ingest,
    search_request,
    unit_vectors,
    upsert_request,
)


async def test_pages_of_one_search_make_up_the_whole_ranking(stub) -> None:
    await ingest(stub, 10)
    query = unit_vectors(1, seed=9)
    whole = await stub.Search(search_request(query, page_size=40))
    ids, token = [], ""
    while True:
        page = await stub.Search(search_request(query, page_size=7, page_token=token))
        ids += [(hit.rank, hit.record.record_id) for hit in page.results[0].hits]
        # What happens meanwhile does not show on the later pages.
        await stub.Upsert(upsert_request(f"late{len(ids)}", query))
        await stub.Delete(search_pb2.DeleteRequest(collection="default", image_ids=["image04"]))
        token = page.results[0].next_page_token
        if not token:
            break
    assert ids == [(hit.rank, hit.record.record_id) for hit in whole.results[0].hits]
    assert len(ids) == 40


async def test_list_images_shows_the_newest_first(stub) -> None:
    await ingest(stub, 5)
    seen, token = [], ""
    while True:
        page = await stub.ListImages(
            search_pb2.ListImagesRequest(collection="default", page_size=2, page_token=token)
        )
        assert page.total_count == 5
        seen += list(page.images)
        token = page.next_page_token
        if not token:
            break
    assert sorted(image.image_id for image in seen) == [f"image{i:02d}" for i in range(5)]
    times = [image.create_time.ToMilliseconds() for image in seen]
    assert times == sorted(times, reverse=True)


async def test_token_of_another_request_is_refused(stub) -> None:
    await ingest(stub, 2)
    page = await stub.Search(search_request(unit_vectors(1), page_size=2))
    token = page.results[0].next_page_token
    assert await failing(stub.Search(search_request(unit_vectors(1), page_size=3, page_token=token))) == (
        Kind.INVALID_ARGUMENT,
        "page_token",
    )


def forged(token: str, change: Callable[[bytes], bytes]) -> str:
    """A token with something else in it."""
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return base64.urlsafe_b64encode(change(data)).decode().rstrip("=")


def with_rank(data: bytes, rank: int) -> bytes:
    """A search's token that says that so many hits came before, signed with another key."""
    parts = json.loads(data[16:])
    parts[3] = rank
    token = PageTokens(lambda *, fresh: bytes(32)).encode(*parts)
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: with_rank(data, 2**31 - 1),
        lambda data: with_rank(data, 2**63),
        lambda data: with_rank(data, 2),
        lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
        lambda data: data[:-1],
        lambda data: data[16:],
        lambda data: b"[" * 100_000,
        lambda data: b"[" * 4000,
        lambda data: b"",
    ],
    ids=["int32", "long", "foreign key", "flipped", "cut", "unsigned", "huge", "nested", "empty"],
)
async def test_a_forged_token_is_refused(stub, change) -> None:
    await ingest(stub, 9)
    request = search_request(unit_vectors(1), page_size=2)
    request.page_token = (await stub.Search(request)).results[0].next_page_token
    assert (await stub.Search(request)).results[0].hits[0].rank == 3
    request.page_token = forged(request.page_token, change) or "x"
    assert await failing(stub.Search(request)) == (Kind.INVALID_ARGUMENT, "page_token")
    listing = search_pb2.ListImagesRequest(collection="default", page_token=request.page_token)
    assert await failing(stub.ListImages(listing)) == (Kind.INVALID_ARGUMENT, "page_token")


async def test_pages_and_streams_do_not_go_on_in_a_collection_that_was_made_again(stub) -> None:
    """The contract's ABORTED: what a page token or the call began with is gone."""
    await ingest(stub, 9)
    await stub.Snapshot(search_pb2.SnapshotRequest(name="before"))

    async def again() -> None:
        await stub.DeleteCollection(search_pb2.DeleteCollectionRequest(name="default"))
        await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO))
        await ingest(stub, 9)

    async def restored() -> None:
        await stub.Restore(search_pb2.RestoreRequest(name="before"))

    for change in (again, restored):
        search = search_request(unit_vectors(1), page_size=2)
        search.page_token = (await stub.Search(search)).results[0].next_page_token
        listing = search_pb2.ListImagesRequest(collection="default", page_size=2)
        listing.page_token = (await stub.ListImages(listing)).next_page_token
        stream = stub.BulkUpsert()
        await stream.write(search_pb2.BulkUpsertRequest(batch=upsert_request("first", unit_vectors(2))))
        await image_count(stub, 10)
        await change()
        await stream.write(search_pb2.BulkUpsertRequest(batch=upsert_request("second", unit_vectors(2))))
        assert await failing(stream) == (Kind.ABORTED, "collection")
        assert (await failing(stub.Search(search)))[0] is Kind.ABORTED
        assert (await failing(stub.ListImages(listing)))[0] is Kind.ABORTED
        await image_count(stub, 9)
