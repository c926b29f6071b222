"""The whole service over real gRPC."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
from regionsearch.v1 import search_pb2, search_pb2_grpc, types_pb2
from services.runtime.server import serving
from services.searcher.__main__ import SERVICES, searcher
from services.searcher.settings import SearcherSettings
from tests.searcher.conftest import (
    DIMENSION,
    MODEL_INFO,
    failing,
    image_count,
    ingest,
    search_request,
    unit_vectors,
    upsert_request,
)


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


async def test_query_without_crop_policy_agrees_with_every_collection(stub) -> None:
    vectors = await ingest(stub, 1)
    request = search_request(vectors[0, :1])
    request.model.crop_policy = types_pb2.CROP_POLICY_UNSPECIFIED
    assert len((await stub.Search(request)).results[0].hits) == 4


async def test_features_are_part_of_a_models_identity(stub) -> None:
    model = types_pb2.ModelInfo()
    model.CopyFrom(MODEL_INFO)
    segmenter = types_pb2.ModelInfo(family="sam", variant="vit_b", weights_digest="5" * 64, dimension=4)
    model.features.CopyFrom(types_pb2.SegmentFeatures(model=segmenter, level=1, weight=0.3))
    made = await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="with-features", model=model))
    assert made.collection.model == model
    vectors = unit_vectors(2)
    request = upsert_request("a", vectors)
    request.collection = "with-features"
    assert await failing(stub.Upsert(request)) == (Kind.MODEL_MISMATCH, "model")
    request.model.CopyFrom(model)
    await stub.Upsert(request)
    wrong = [
        (0, 1.0, "model.features.model.dimension"),
        (DIMENSION, 1.0, "model.features.model.dimension"),
        (4, 0.0, "model.features.weight"),
        (4, float("nan"), "model.features.weight"),
    ]
    for dimension, weight, field in wrong:
        model.features.model.dimension, model.features.weight = dimension, weight
        create = search_pb2.CreateCollectionRequest(name="wrong", model=model)
        assert await failing(stub.CreateCollection(create)) == (Kind.INVALID_ARGUMENT, field)


async def test_min_seq_is_visible_or_refused(stub) -> None:
    written = await stub.Upsert(upsert_request("a", unit_vectors(1)))
    answer = await stub.Search(search_request(unit_vectors(1), min_seq=written.seq))
    assert answer.seq >= written.seq
    kind, field = (await failing(stub.Search(search_request(unit_vectors(1), min_seq=written.seq + 99))))[:2]
    assert (kind, field) == (Kind.FAILED_PRECONDITION, "min_seq")  # at once: it may never come


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


async def test_an_image_that_loses_a_region_to_another_counts_the_rest(stub) -> None:
    await stub.Upsert(upsert_request("a", unit_vectors(4)))
    taking = upsert_request("b", unit_vectors(2))
    taking.records[1].record_id = "a-001"
    await stub.Upsert(taking)
    listed = await stub.ListImages(search_pb2.ListImagesRequest(collection="default"))
    assert {image.image_id: image.region_count for image in listed.images} == {"a": 2, "b": 1}


async def test_records_are_searched_by_their_ids_with_positives_and_negatives(stub) -> None:
    vectors = (await ingest(stub, 5)).reshape(-1, DIMENSION)
    ids = [f"image{number // 4:02d}-{number % 4:03d}" for number in range(20)]
    both = search_request(vectors[4:6], negatives=tensor_to_proto(vectors[9:10]), min_relevancy=0.0)
    named = search_pb2.SearchRequest(
        collection="default", model=MODEL_INFO, query_record_ids=ids[4:6], negative_record_ids=ids[9:10],
        min_relevancy=0.0,
    )  # fmt: skip
    mixed = search_request(vectors[4:5], query_record_ids=ids[5:6], negative_record_ids=ids[9:10])
    mixed.min_relevancy = 0.0
    answers = [await stub.Search(request) for request in (both, named, mixed)]
    for answer in answers:
        assert [len(result.hits) for result in answer.results] == [20, 20]
        assert [result.hits[0].record.record_id for result in answer.results] == ids[4:6]
        for mine, theirs in zip(answer.results, answers[0].results, strict=True):
            assert [h.record.record_id for h in mine.hits] == [h.record.record_id for h in theirs.hits]
            assert [h.relevancy for h in mine.hits] == pytest.approx(
                [h.relevancy for h in theirs.hits], abs=0.1
            )
    named.query_record_ids.append("nobody")
    assert await failing(stub.Search(named)) == (Kind.NOT_FOUND, "query_record_ids[2]")
    many = search_pb2.SearchRequest(collection="default", model=MODEL_INFO, query_record_ids=["a"] * 65)
    assert (await failing(stub.Search(many)))[0] is Kind.INVALID_ARGUMENT
