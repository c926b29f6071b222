"""The whole service over real gRPC."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2
from services.runtime.server import serving
from services.searcher.__main__ import SERVICES, searcher
from services.searcher.embedded.store.database import Database
from services.searcher.search_requests import PageTokens
from services.searcher.settings import SearcherSettings
from tests.searcher.conftest import DIMENSION, MODEL_INFO, search_request, unit_vectors, upsert_request


async def ingest(stub, count: int, regions: int = 3) -> np.ndarray:
    vectors = unit_vectors(count * (regions + 1)).reshape(count, regions + 1, DIMENSION)
    for number, rows in enumerate(vectors):
        tags = ("even",) if number % 2 == 0 else ("odd",)
        await stub.Upsert(upsert_request(f"image{number:02d}", rows, tags=tags))
    return vectors


async def test_search_finds_what_was_written(stub) -> None:
    vectors = await ingest(stub, 5)
    answer = await stub.Search(search_request(vectors[3, 2:3], page_size=1))
    (hit,) = answer.results[0].hits
    assert hit.record.record_id == "image03-002"
    assert hit.score == pytest.approx(1.0, abs=2e-3)
    assert hit.rank == 1
    assert hit.image.name == "image03.jpg"
    assert hit.image.region_count == 3
    assert (hit.record.box.x_min, hit.record.box.x_max) == (2.0, 4.0)
    assert hit.record.level == search_pb2.LEVEL_REGION
    assert answer.model == MODEL_INFO
    assert answer.results[0].next_page_token


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


async def test_grouping_fills_the_page_with_images(stub) -> None:
    crowd = np.repeat(unit_vectors(1, seed=5), 200, axis=0)
    await stub.Upsert(upsert_request("crowd", crowd))
    await ingest(stub, 6)
    answer = await stub.Search(search_request(crowd[:1], page_size=7, group_by=search_pb2.GROUP_BY_IMAGE))
    images = [hit.image.image_id for hit in answer.results[0].hits]
    assert images[0] == "crowd"
    assert sorted(images) == ["crowd", *(f"image{i:02d}" for i in range(6))]
    assert not answer.results[0].next_page_token


async def test_whole_image_goes_before_its_slightly_better_region(stub) -> None:
    query = np.eye(DIMENSION, dtype=np.float32)[:1]

    def at(cosine: float) -> np.ndarray:
        vector = np.zeros((1, DIMENSION), np.float32)
        vector[0, 0], vector[0, 1] = cosine, np.sqrt(1 - cosine**2)
        return vector

    await stub.Upsert(upsert_request("near", np.concatenate([at(0.79), at(0.80)])))
    await stub.Upsert(upsert_request("far", np.concatenate([at(0.60), at(0.85)])))
    answer = await stub.Search(search_request(query, group_by=search_pb2.GROUP_BY_IMAGE))
    far, near = answer.results[0].hits
    assert far.record.record_id == "far-001"
    assert not far.HasField("best_region")
    assert near.record.record_id == "near-000"
    assert near.best_region.record.record_id == "near-001"
    strict = await stub.Search(
        search_request(query, group_by=search_pb2.GROUP_BY_IMAGE, whole_image_margin=0.0)
    )
    assert strict.results[0].hits[1].record.record_id == "near-001"


async def test_best_mode_names_the_query_that_scored(stub) -> None:
    vectors = await ingest(stub, 4)
    pair = np.concatenate([vectors[0, 1:2], vectors[2, 3:4]])
    answer = await stub.Search(search_request(pair, query_mode=search_pb2.QUERY_MODE_BEST, page_size=2))
    hits = {hit.record.record_id: hit.query_index for hit in answer.results[0].hits}
    assert hits == {"image00-001": 0, "image02-003": 1}
    each = await stub.Search(search_request(pair, page_size=1))
    assert [result.hits[0].record.record_id for result in each.results] == ["image00-001", "image02-003"]


async def test_negatives_leave_out_what_is_nearer_to_them(stub) -> None:
    vectors = await ingest(stub, 4)
    query, negative = vectors[0, 1:2], vectors[1, 1:2]
    answer = await stub.Search(search_request(query, negatives=tensor_to_proto(negative), page_size=100))
    hits = answer.results[0].hits
    assert hits[0].record.record_id == "image00-001"
    assert hits[0].relevancy > 0.99
    assert all(hit.relevancy >= 0.5 for hit in hits)
    assert "image01-001" not in {hit.record.record_id for hit in hits}
    everything = await stub.Search(
        search_request(query, negatives=tensor_to_proto(negative), page_size=100, min_relevancy=0.0)
    )
    assert len(everything.results[0].hits) == 16


async def test_a_search_without_hits_returns_an_empty_page(stub) -> None:
    await ingest(stub, 2)
    answer = await stub.Search(search_request(unit_vectors(1, seed=3), min_score=0.999))
    assert list(answer.results[0].hits) == []
    assert not answer.results[0].next_page_token


async def test_relative_cutoff_keeps_what_is_near_the_best(stub) -> None:
    vectors = await ingest(stub, 5)
    answer = await stub.Search(search_request(vectors[0, :1], relative_cutoff=0.5, page_size=100))
    scores = [hit.score for hit in answer.results[0].hits]
    assert 0 < len(scores) < 20
    assert min(scores) >= 0.5 * scores[0]


async def test_skip_existing_leaves_images_as_they_are(stub) -> None:
    old, new = unit_vectors(2), unit_vectors(2, seed=1)
    await stub.Upsert(upsert_request("a", old))
    answer = await stub.Upsert(upsert_request("a", new, skip_existing=True))
    assert list(answer.skipped_image_ids) == ["a"]
    found = await stub.GetRecords(
        search_pb2.GetRecordsRequest(collection="default", image_ids=["a"], include_vectors=True)
    )
    np.testing.assert_allclose(tensor_from_proto(found.vectors, "vectors"), old, atol=1e-3)
    await stub.Upsert(upsert_request("a", new[:1]))
    found = await stub.GetRecords(
        search_pb2.GetRecordsRequest(collection="default", image_ids=["a"], include_vectors=True)
    )
    np.testing.assert_allclose(tensor_from_proto(found.vectors, "vectors"), new[:1], atol=1e-3)


async def test_bulk_upsert_counts_records_and_skipped_images(stub) -> None:
    async def batches():
        for number in range(5):
            batch = upsert_request(f"image{number % 4}", unit_vectors(3, seed=number), skip_existing=True)
            yield search_pb2.BulkUpsertRequest(batch=batch)

    answer = await stub.BulkUpsert(batches())
    assert (answer.record_count, answer.skipped_image_count) == (12, 1)
    stats = await stub.GetStats(search_pb2.GetStatsRequest())
    assert stats.collections[0].record_count == 12
    assert stats.collections[0].image_count == 4
    assert stats.engine == "faiss-cpu"
    assert stats.disk_bytes > 0


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


async def test_snapshot_and_restore_over_grpc(stub, settings) -> None:
    vectors = await ingest(stub, 3)
    request = search_request(vectors[1, :1], page_size=100)
    before = await stub.Search(request)
    taken = await stub.Snapshot(search_pb2.SnapshotRequest(name="monday"))
    assert (settings.folder / "snapshots" / "monday").stat().st_size == taken.size_bytes
    await stub.Delete(search_pb2.DeleteRequest(collection="default", image_ids=["image01"]))
    await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="other", model=MODEL_INFO))
    restored = await stub.Restore(search_pb2.RestoreRequest(name="monday"))
    assert restored.collection_count == 1
    assert restored.seq > taken.seq
    after = await stub.Search(request)
    assert after.results == before.results
    listed = await stub.ListCollections(search_pb2.ListCollectionsRequest())
    assert [collection.name for collection in listed.collections] == ["default"]
    written = await stub.Upsert(upsert_request("new", unit_vectors(1)))
    assert written.seq > restored.seq


async def test_snapshots_are_listed_deleted_and_kept_in_number_over_grpc(stub) -> None:
    async def names() -> list[str]:
        listed = await stub.ListSnapshots(search_pb2.ListSnapshotsRequest())
        assert all(one.size_bytes > 0 and one.create_time.seconds > 0 for one in listed.snapshots)
        return [one.name for one in listed.snapshots]

    assert await names() == []
    for name in ("a", "b", "c"):
        await stub.Snapshot(search_pb2.SnapshotRequest(name=name))
    assert await names() == ["c", "b", "a"]
    await stub.DeleteSnapshot(search_pb2.DeleteSnapshotRequest(name="b"))
    assert await names() == ["c", "a"]
    await stub.Snapshot(search_pb2.SnapshotRequest(name="d", keep=2))
    assert await names() == ["d", "c"]
    missing = stub.DeleteSnapshot(search_pb2.DeleteSnapshotRequest(name="b"))
    assert await failing(missing) == (Kind.NOT_FOUND, "name")
    outside = stub.DeleteSnapshot(search_pb2.DeleteSnapshotRequest(name="../records.sqlite"))
    assert await failing(outside) == (Kind.INVALID_ARGUMENT, "name")
    negative = stub.Snapshot(search_pb2.SnapshotRequest(keep=-1))
    assert await failing(negative) == (Kind.INVALID_ARGUMENT, "keep")


async def test_a_second_snapshot_is_refused_at_once_and_writes_go_on(
    stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest(stub, 3)
    begun, gate = threading.Event(), threading.Event()
    copy = Database.copy_to

    def slow(database: Database, target: Path) -> None:
        begun.set()
        assert gate.wait(60)
        copy(database, target)

    monkeypatch.setattr(Database, "copy_to", slow)
    first = asyncio.ensure_future(stub.Snapshot(search_pb2.SnapshotRequest(name="first")))
    await asyncio.to_thread(begun.wait, 60)
    others = [failing(stub.Snapshot(search_pb2.SnapshotRequest(name=f"s{n}"))) for n in range(64)]
    others.append(failing(stub.Restore(search_pb2.RestoreRequest(name="first"))))
    assert {kind for kind, _ in await asyncio.gather(*others)} == {Kind.OVERLOADED}
    await stub.Upsert(upsert_request("meanwhile", unit_vectors(2)))
    gate.set()
    assert (await first).name == "first"
    await stub.Snapshot(search_pb2.SnapshotRequest(name="second"))


async def failing(call) -> tuple[Kind, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.kind, error.field


def with_vectors(vectors: np.ndarray) -> search_pb2.UpsertRequest:
    request = upsert_request("a", unit_vectors(len(vectors)))
    request.vectors.CopyFrom(tensor_to_proto(vectors.astype(np.float32)))
    return request


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (lambda v: np.where(np.arange(DIMENSION) == 3, np.nan, v), "vectors"),
        (lambda v: np.where(np.arange(DIMENSION) == 3, np.inf, v), "vectors"),
        (lambda v: v * 0, "vectors[0]"),
        (lambda v: v[:, :-1], "vectors.shape"),
    ],
    ids=["nan", "infinite", "zero", "dimension"],
)
async def test_an_upsert_with_invalid_vectors_changes_nothing(stub, damage, field) -> None:
    assert await failing(stub.Upsert(with_vectors(damage(unit_vectors(2))))) == (Kind.INVALID_ARGUMENT, field)
    listed = await stub.ListImages(search_pb2.ListImagesRequest(collection="default"))
    assert listed.total_count == 0


async def test_errors_of_invalid_requests_name_the_field(stub) -> None:
    good = upsert_request("a", unit_vectors(2))
    assert await failing(stub.Search(search_request(unit_vectors(1), page_token="x"))) == (
        Kind.INVALID_ARGUMENT,
        "page_token",
    )
    negative = upsert_request("a", unit_vectors(1))
    negative.model.dimension = -1
    del negative.records[:]
    assert await failing(stub.Upsert(negative)) == (Kind.INVALID_ARGUMENT, "model.dimension")
    twice = search_pb2.UpsertRequest()
    twice.CopyFrom(good)
    twice.records[1].record_id = twice.records[0].record_id
    assert await failing(stub.Upsert(twice)) == (Kind.INVALID_ARGUMENT, "records[1].record_id")
    orphan = search_pb2.UpsertRequest()
    orphan.CopyFrom(good)
    del orphan.images[:]
    assert await failing(stub.Upsert(orphan)) == (Kind.INVALID_ARGUMENT, "records[0].image_id")
    lost = search_pb2.UpsertRequest()
    lost.CopyFrom(good)
    lost.collection = "nowhere"
    assert await failing(stub.Upsert(lost)) == (Kind.NOT_FOUND, "collection")
    other = search_pb2.UpsertRequest()
    other.CopyFrom(good)
    other.model.crop_policy = types_pb2.CROP_POLICY_BBOX
    assert (await failing(stub.Upsert(other)))[0] is Kind.MODEL_MISMATCH
    create = search_pb2.CreateCollectionRequest(name="../up", model=MODEL_INFO)
    assert await failing(stub.CreateCollection(create)) == (Kind.INVALID_ARGUMENT, "name")
    create = search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO)
    assert await failing(stub.CreateCollection(create)) == (Kind.ALREADY_EXISTS, "name")
    for name in ("../../etc/passwd", "/tmp/x", ".hidden"):
        assert await failing(stub.Snapshot(search_pb2.SnapshotRequest(name=name))) == (
            Kind.INVALID_ARGUMENT,
            "name",
        )
    assert await failing(stub.Restore(search_pb2.RestoreRequest(name="none"))) == (Kind.NOT_FOUND, "name")
    empty = search_pb2.DeleteRequest(collection="default", filter=search_pb2.Filter())
    assert await failing(stub.Delete(empty)) == (Kind.INVALID_ARGUMENT, "filter")
    listed = await stub.ListImages(search_pb2.ListImagesRequest(collection="default"))
    assert listed.total_count == 0


@pytest.mark.parametrize("method", ["METHOD_PCA_ROTATION", "METHOD_ITQ"])
@pytest.mark.parametrize("bits", [0, 24])
async def test_codes_longer_than_their_vectors_are_refused(stub, method, bits) -> None:
    """16-d vectors have 16 principal components; 0 stands for the default of 256 bits."""
    codes = search_pb2.BinaryCodes(method=method, bits=bits)
    create = search_pb2.CreateCollectionRequest(name="coded", model=MODEL_INFO, binary_codes=codes)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateCollection(create)
    error = from_rpc_error(caught.value)
    assert (error.kind, error.field) == (Kind.INVALID_ARGUMENT, "binary_codes.bits")
    assert "set binary_codes.bits to 16" in error.message
    listed = await stub.ListCollections(search_pb2.ListCollectionsRequest())
    assert [collection.name for collection in listed.collections] == ["default"]
    create.binary_codes.bits = 16
    await stub.CreateCollection(create)


async def test_query_without_crop_policy_agrees_with_every_collection(stub) -> None:
    vectors = await ingest(stub, 1)
    request = search_request(vectors[0, :1])
    request.model.crop_policy = types_pb2.CROP_POLICY_UNSPECIFIED
    assert len((await stub.Search(request)).results[0].hits) == 4


async def test_min_seq_is_visible_or_refused(stub) -> None:
    written = await stub.Upsert(upsert_request("a", unit_vectors(1)))
    answer = await stub.Search(search_request(unit_vectors(1), min_seq=written.seq))
    assert answer.seq >= written.seq
    kind, field = (await failing(stub.Search(search_request(unit_vectors(1), min_seq=written.seq + 99))))[:2]
    assert (kind, field) == (Kind.FAILED_PRECONDITION, "min_seq")  # at once: it may never come


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


async def image_count(stub, expected: int) -> None:
    """Waits until there are so many images."""
    while (await stub.GetStats(search_pb2.GetStatsRequest())).collections[0].image_count != expected:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


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


async def test_a_negative_whole_image_margin_is_refused(stub) -> None:
    await ingest(stub, 2)
    for margin in (-0.01, -0.3, float("nan"), float("inf")):
        search = search_request(unit_vectors(1), whole_image_margin=margin)
        assert await failing(stub.Search(search)) == (Kind.INVALID_ARGUMENT, "whole_image_margin")


async def test_an_idle_stream_does_not_hold_a_stopping_process(settings) -> None:
    process = SearcherSettings(port=0, drain_delay_s=0, grace_s=60, embedded=settings)
    async with (
        serving(process, SERVICES, searcher(process)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="default", model=MODEL_INFO))
        stream = stub.BulkUpsert()
        await stream.write(search_pb2.BulkUpsertRequest(batch=upsert_request("a", unit_vectors(3))))
        await image_count(stub, 1)
        server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stream, 30)
        error = from_rpc_error(caught.value)
        assert error.kind is Kind.UNAVAILABLE
        assert "3 records of this stream are written" in error.message


async def test_names_with_a_nul_are_refused_and_name_nothing(stub) -> None:
    """SQLite would take them for shorter names: a deletion of one would hit another."""
    await stub.Upsert(upsert_request("a", unit_vectors(2), tags=("t",)))
    for request, field in (
        (upsert_request("a\0b", unit_vectors(1)), "images[0].image_id"),
        (upsert_request("b", unit_vectors(1), tags=("t\0u",)), "images[0].tags"),
    ):
        assert await failing(stub.Upsert(request)) == (Kind.INVALID_ARGUMENT, field)
    done = await stub.Delete(
        search_pb2.DeleteRequest(collection="default", image_ids=["a\0b"], record_ids=["a-000\0"])
    )
    assert (done.deleted_image_count, done.deleted_record_count) == (0, 0)
    for wanted in (search_pb2.Filter(image_ids=["a\0"]), search_pb2.Filter(tags=["t\0"])):
        assert not (await stub.Search(search_request(unit_vectors(1), filter=wanted))).results[0].hits
    assert not (
        await stub.GetRecords(search_pb2.GetRecordsRequest(collection="default", record_ids=["a-000\0"]))
    ).records


async def test_oversized_filters_and_collections_are_refused(stub) -> None:
    late = search_pb2.Filter()
    late.created_after.seconds = 1 << 62
    search = search_request(unit_vectors(1), filter=late)
    assert await failing(stub.Search(search)) == (Kind.INVALID_ARGUMENT, "filter.created_after")
    many = search_pb2.Filter(attributes={str(number): "x" for number in range(65)})
    search = search_request(unit_vectors(1), filter=many)
    assert await failing(stub.Search(search)) == (Kind.TOO_LARGE, "filter.attributes")
    attribute = {"attribute": "a"}
    for conditions, field in (
        ([{}], "[0]"),
        ([attribute, {**attribute, "tag": "t"}], "[1]"),
        ([{**attribute, "prefix": "a", "values": ["b"]}], "[0]"),
        ([{"tag": "t", "prefix": "t"}], "[0]"),
        ([{"any_of": [attribute], "tag": "t"}], "[0]"),
        ([{"any_of": [attribute], "number": {"lt": 1.0}}], "[0]"),
        ([{"any_of": [{"any_of": [attribute]}]}], "[0].any_of[0]"),
        ([{**attribute, "number": {}}], "[0].number"),
        ([{**attribute, "number": {"gte": float("nan")}}], "[0].number"),
        ([{**attribute, "time": {"gte": {"seconds": 1 << 62}}}], "[0].time.gte"),
    ):
        wrong = search_pb2.Filter(conditions=[search_pb2.Condition(**one) for one in conditions])
        search = search_request(unit_vectors(1), filter=wrong)
        assert await failing(stub.Search(search)) == (Kind.INVALID_ARGUMENT, f"filter.conditions{field}")
    many = search_pb2.Filter(conditions=[search_pb2.Condition(any_of=[attribute] * 64)])
    search = search_request(unit_vectors(1), filter=many)
    assert await failing(stub.Search(search)) == (Kind.TOO_LARGE, "filter.conditions")
    huge = search_pb2.CreateCollectionRequest(name="huge", model=MODEL_INFO)
    huge.model.dimension = 1 << 23
    assert await failing(stub.CreateCollection(huge)) == (Kind.TOO_LARGE, "model.dimension")
    wordy = search_pb2.CreateCollectionRequest(name="wordy", model=MODEL_INFO)
    wordy.model.variant = "x" * 5000
    assert await failing(stub.CreateCollection(wordy)) == (Kind.TOO_LARGE, "model")


@pytest.mark.parametrize("field", ["group_by", "query_mode", "level"])
async def test_unknown_enum_values_of_newer_clients_are_refused(stub, field) -> None:
    search = search_request(unit_vectors(1), **{field: 9})
    assert await failing(stub.Search(search)) == (Kind.INVALID_ARGUMENT, field)


async def test_an_image_that_loses_a_region_to_another_counts_the_rest(stub) -> None:
    await stub.Upsert(upsert_request("a", unit_vectors(4)))
    taking = upsert_request("b", unit_vectors(2))
    taking.records[1].record_id = "a-001"
    await stub.Upsert(taking)
    listed = await stub.ListImages(search_pb2.ListImagesRequest(collection="default"))
    assert {image.image_id: image.region_count for image in listed.images} == {"a": 2, "b": 1}


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_foreign_snapshot_is_refused_by_name(stub, settings) -> None:
    vectors = await ingest(stub, 1)
    folder: Path = settings.folder / "snapshots"
    put(folder, {"foreign": b"no database at all" * 1000, "empty": b""})
    for name in ("foreign", "empty"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Restore(search_pb2.RestoreRequest(name=name))
        error = from_rpc_error(caught.value)
        assert error.kind is Kind.DATA_LOSS
        assert name in error.message
    assert names(folder) == ["empty", "foreign"]
    assert len((await stub.Search(search_request(vectors[0, :1]))).results[0].hits) == 4
