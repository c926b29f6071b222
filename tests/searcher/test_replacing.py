"""A collection's name is given to another one: in one step, and only when nothing would be lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.texts import MetadataLimits
from regionsearch.v1 import search_pb2, segment_pb2
from services.searcher.embedded.engine import EmbeddedEngine
from services.searcher.queries import Deletion, ImageUpdate, Query
from services.searcher.settings import EmbeddedSettings
from services.searcher.types import Collection, Level, ModelIdentity, Record, StoredImage, Upsert
from tests.searcher.conftest import DIMENSION, MODEL, MODEL_INFO, unit_vectors, upsert_request

NEXT = replace(MODEL, variant="next", weights_digest="other")
LIMITS = MetadataLimits(tags=100, attributes=100, text_bytes=1000, total_bytes=10_000)


def write(
    engine: EmbeddedEngine, name: str, ids: Sequence[str], model: ModelIdentity = MODEL, created_ms: int = 0
) -> None:
    images = [
        StoredImage(i, f"{i}.png", tags=("t",), attributes={"a": "1", "b": "2"}, created_ms=created_ms)
        for i in ids
    ]
    records = [Record(f"{i}-image", i, Level.IMAGE) for i in ids]
    engine.upsert(name, model, Upsert(images, records, unit_vectors(len(ids)), skip_existing=True))


def ids_in(engine: EmbeddedEngine, name: str) -> set[str]:
    return {image.image_id for image in engine.list_images(name, 1000, None).images}


@pytest.fixture
def two(engine: EmbeddedEngine) -> EmbeddedEngine:
    """`default` with two images, `next` with one of them."""
    engine.create_collection(Collection("next", NEXT, replaces="default"))
    write(engine, "default", ["x", "y"], created_ms=5)
    write(engine, "next", ["x"], NEXT, created_ms=5)
    return engine


def test_a_name_is_given_once_nothing_is_missing(two: EmbeddedEngine, settings: EmbeddedSettings) -> None:
    assert two.get_collection("next").replaces == "default"
    assert two.replace_collection("default", "next", "before") == ["y"]
    assert two.get_collection("default").model == MODEL
    write(two, "next", ["y"], NEXT, created_ms=5)
    assert two.replace_collection("default", "next", "before") == []
    for _ in range(2):
        assert [c.name for c in two.list_collections()] == ["before", "default"]
        assert (two.get_collection("default").model, two.get_collection("before").model) == (NEXT, MODEL)
        assert two.get_collection("default").replaces == ""
        assert two.get_collection("default").image_count == 2
        queries = [Query(unit_vectors(1), np.empty((0, DIMENSION), np.float32))]
        assert len(two.search("default", NEXT, queries)[0].hits) == 2
        with pytest.raises(RegionSearchError) as gone:
            two.get_collection("next")
        assert gone.value.kind is Kind.NOT_FOUND
        with pytest.raises(RegionSearchError) as other:
            two.search("default", MODEL, queries)
        assert other.value.kind is Kind.MODEL_MISMATCH
        two.close()
        two = EmbeddedEngine(settings)  # it is as it was after a restart
    two.close()


@pytest.mark.parametrize("change", ["deleted", "tags", "other regions", "other time"])
def test_images_that_differ_are_named(two: EmbeddedEngine, change: str) -> None:
    write(two, "next", ["y"], NEXT, created_ms=6 if change == "other time" else 5)
    if change == "deleted":
        two.delete("default", Deletion(image_ids=("y",)))
    if change == "tags":
        two.update_images("default", [ImageUpdate("y", add_tags=("new",))], LIMITS)
    if change == "other regions":
        more = Upsert([], [Record("y-1", "y", Level.REGION)], unit_vectors(1))
        two.upsert("default", MODEL, more)
    assert two.replace_collection("default", "next", "before") == ["y"]
    assert two.get_collection("default").model == MODEL


def test_the_order_of_attributes_makes_no_difference(two: EmbeddedEngine) -> None:
    image = StoredImage("y", "y.png", tags=("t",), attributes={"b": "2", "a": "1"}, created_ms=5)
    two.upsert("next", NEXT, Upsert([image], [Record("y-image", "y", Level.IMAGE)], unit_vectors(1)))
    assert two.replace_collection("default", "next", "before") == []


def test_a_name_that_is_taken_is_refused(two: EmbeddedEngine) -> None:
    write(two, "next", ["y"], NEXT, created_ms=5)
    two.create_collection(Collection("before", MODEL))
    with pytest.raises(RegionSearchError, match="'before' already") as taken:
        two.replace_collection("default", "next", "before")
    assert taken.value.kind is Kind.ALREADY_EXISTS
    assert two.get_collection("default").model == MODEL


def test_no_acknowledged_write_is_lost_while_names_change(engine: EmbeddedEngine) -> None:
    """Writers, a deleter and a tagger go on while the name is given to and fro."""
    engine.create_collection(Collection("next", MODEL))
    stop, errors, written = threading.Event(), [], set()

    def work(prefix: str) -> None:
        try:
            for number in count():
                if stop.is_set():
                    return
                identity = f"{prefix}{number}"
                write(engine, "default", [identity])
                engine.update_images("default", [ImageUpdate(identity, add_tags=("seen",))], LIMITS)
                if number % 3:
                    written.add(identity)
                else:
                    engine.delete("default", Deletion(image_ids=(identity,)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(prefix,)) for prefix in "ab"]
    for thread in threads:
        thread.start()
    renamed = 0
    try:
        for _ in range(60):
            differing = engine.replace_collection("default", "next", "before", hold_s=5)
            if not differing:
                renamed += 1
                engine.delete_collection("before")
                if renamed == 3:
                    break
                engine.create_collection(Collection("next", MODEL))
                continue
            found = engine.get_records("default", [], differing, masks=False, vectors=True)
            assert found.vectors is not None
            gone = set(differing) - {image.image_id for image in found.images}
            if gone:
                engine.delete("next", Deletion(image_ids=tuple(gone)))
            if found.images:
                engine.upsert("next", MODEL, Upsert(found.images, found.records, found.vectors))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert renamed == 3, "writes wait while the last images are copied"
    assert ids_in(engine, "default") == written


async def test_a_collection_is_replaced_over_grpc(stub: object) -> None:
    everything = segment_pb2.EverythingOptions(points_per_side=9, pred_iou_thresh=0.3)
    made = search_pb2.CreateCollectionRequest(
        name="next", model=MODEL_INFO, replaces="default", everything=everything
    )
    collection = (await stub.CreateCollection(made)).collection
    assert collection.replaces == "default"
    assert collection.everything == everything
    await stub.Upsert(upsert_request("x", unit_vectors(2)))
    ask = search_pb2.ReplaceCollectionRequest(name="default", by="next", keep_as="before")
    assert (await stub.ReplaceCollection(ask)).differing_image_ids == ["x"]
    found = await stub.GetRecords(
        search_pb2.GetRecordsRequest(collection="default", image_ids=["x"], include_vectors=True)
    )
    copy = search_pb2.UpsertRequest(
        collection="next",
        model=MODEL_INFO,
        images=found.images,
        records=found.records,
        vectors=found.vectors,
        keep_create_time=True,
    )
    await stub.Upsert(copy)
    assert not (await stub.ReplaceCollection(ask)).differing_image_ids
    for keep_as in ("default", "Not a name"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ReplaceCollection(
                search_pb2.ReplaceCollectionRequest(name="default", by="before", keep_as=keep_as)
            )
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_hold_ends_by_itself(two: EmbeddedEngine) -> None:
    assert two.replace_collection("default", "next", "before", hold_s=0.2) == ["y"]
    start = time.monotonic()
    write(two, "default", ["z"])
    assert time.monotonic() - start > 0.1
