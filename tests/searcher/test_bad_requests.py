"""Requests that the searcher refuses over gRPC: with the field, and without any change."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import search_pb2, types_pb2
from tests.searcher.conftest import (
    DIMENSION,
    MODEL_INFO,
    failing,
    ingest,
    search_request,
    unit_vectors,
    upsert_request,
)


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


async def test_a_recall_target_outside_of_its_range_is_refused_and_others_are_kept(stub) -> None:
    create = search_pb2.CreateCollectionRequest(name="sure", model=MODEL_INFO)
    for target in (-0.1, 1.1, float("nan")):
        create.recall_target = target
        assert await failing(stub.CreateCollection(create)) == (Kind.INVALID_ARGUMENT, "recall_target")
    create.recall_target = 0.995
    await stub.CreateCollection(create)
    found = await stub.GetCollection(search_pb2.GetCollectionRequest(name="sure"))
    assert found.collection.recall_target == 0.995


async def test_a_negative_whole_image_margin_is_refused(stub) -> None:
    await ingest(stub, 2)
    for margin in (-0.01, -0.3, float("nan"), float("inf")):
        search = search_request(unit_vectors(1), whole_image_margin=margin)
        assert await failing(stub.Search(search)) == (Kind.INVALID_ARGUMENT, "whole_image_margin")


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
