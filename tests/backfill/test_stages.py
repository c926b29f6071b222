"""The stages of a backfill without Ray, against the shared stack."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from backfill.job import Job  # noqa: E402
from backfill.rows import Row, from_table, to_table  # noqa: E402
from backfill.sources import Metadata  # noqa: E402
from backfill.stages import Check, Embed, Segment, Stage, Write, find_collection  # noqa: E402
from regionsearch.errors import Kind, RegionSearchError, overloaded  # noqa: E402
from regionsearch.tensors import tensor_from_proto  # noqa: E402
from regionsearch.v1 import (  # noqa: E402
    region_search_pb2,
    region_search_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)
from tests.backfill.images import drawn  # noqa: E402
from tests.stack import Stack  # noqa: E402

COLLECTION, ORDINARY = "backfilled", "sent-to-the-gateway"
IMAGES = [drawn(number) for number in range(4)]


@pytest.fixture(scope="module")
def job(stack: Stack, monkeypatch_module: pytest.MonkeyPatch) -> Job:
    monkeypatch_module.setenv("REGIONSEARCH_SEGMENTER_THREADS", "1")  # as the stack's
    monkeypatch_module.setenv("REGIONSEARCH_EMBEDDER_THREADS", "1")
    images = stack.folder / "data" / "images"
    job = Job.read(searcher=stack.services["searcher"], image_store=str(images), wait_s=30)
    with httpx.Client(base_url=stack.http, timeout=120) as http:
        for name in (COLLECTION, ORDINARY):  # whose vectors are those of both models
            collection = {"name": name, "segment_features": {"level": 0, "weight": 0.5}}
            http.post("/v1/collections", json=collection).raise_for_status()
    return find_collection(job, COLLECTION)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def stages(job: Job) -> Iterator[list[Stage]]:
    stages = [Check(job), Segment(job), Embed(job), Write(job)]
    yield stages
    for stage in stages:
        stage.close()


def through(stages: Sequence[Stage], rows: Sequence[Row]) -> list[Row]:
    table = to_table(rows)
    for stage in stages:
        table = stage(table)
    return from_table(table)


def rows(images: Sequence[bytes], *tags: str) -> list[Row]:
    """Rows whose requests ask for a coarse grid, which is quick."""
    made = []
    for number, data in enumerate(images):
        metadata = Metadata(tags).request(f"image-{number}.png", {"place": "here"})
        request = region_search_pb2.IngestImageRequest.FromString(metadata)
        request.everything.points_per_side = 4
        made.append(Row(str(number), request.SerializeToString(), data))
    return made


def stored(stack: Stack, collection: str, image_ids: Sequence[str]) -> search_pb2.GetRecordsResponse:
    with grpc.insecure_channel(stack.services["searcher"]) as channel:
        return search_pb2_grpc.SearchServiceStub(channel).GetRecords(
            search_pb2.GetRecordsRequest(
                collection=collection, image_ids=image_ids, include_masks=True, include_vectors=True
            )
        )


def test_a_backfilled_image_equals_one_sent_to_the_gateway_bit_for_bit(
    stack: Stack, stages: list[Stage]
) -> None:
    done = through(stages, rows(IMAGES, "drawn"))
    assert [row.outcome for row in done] == ["created"] * len(IMAGES), done
    assert not any(row.data or row.segmented or row.vectors for row in done)
    with httpx.Client(base_url=stack.http, timeout=120) as http:
        contents = [
            http.get(f"/v1/collections/{COLLECTION}/images/{row.image_id}/content").content for row in done
        ]
    assert contents == IMAGES
    with grpc.insecure_channel(stack.grpc) as channel:
        gateway = region_search_pb2_grpc.RegionSearchServiceStub(channel)
        for row in rows(IMAGES, "drawn"):
            request = region_search_pb2.IngestImageRequest.FromString(row.request)
            request.collection, request.image.encoded = ORDINARY, row.data
            gateway.IngestImage(request)
    assert all(row.regions for row in done)
    for row in done:
        ours, theirs = (stored(stack, name, [row.image_id]) for name in (COLLECTION, ORDINARY))
        assert list(ours.records) == list(theirs.records)
        vectors = [tensor_from_proto(found.vectors, "vectors") for found in (ours, theirs)]
        np.testing.assert_array_equal(*vectors)
        (mine,), (other,) = ours.images, theirs.images
        for image in (mine, other):
            image.ClearField("create_time")
        assert mine == other


def test_what_is_stored_is_not_worked_on_again_and_gets_new_tags(stack: Stack, stages: list[Stage]) -> None:
    through(stages, rows(IMAGES))
    check, *_ = stages
    again = from_table(check(to_table(rows(IMAGES, "seen twice"))))
    assert [row.outcome for row in again] == ["duplicate"] * len(IMAGES)
    found = stored(stack, COLLECTION, [row.image_id for row in again])
    assert all("seen twice" in image.tags for image in found.images)


def test_images_that_cannot_be_added_fail_alone_and_twins_become_one(
    stack: Stack, stages: list[Stage]
) -> None:
    fresh, truncated = drawn(100), drawn(101)[:-60]
    done = through(stages, rows([fresh, b"not an image", fresh, truncated, b""]))
    assert [row.outcome for row in done] == ["created", "failed", "duplicate", "failed", "failed"]
    assert [row.code for row in done if row.code] == [
        "UNSUPPORTED_IMAGE", "UNSUPPORTED_IMAGE", "INVALID_ARGUMENT"
    ]  # fmt: skip
    assert len(stored(stack, COLLECTION, [done[0].image_id]).images) == 1


def test_a_new_collection_is_created_for_the_embedders_model(stack: Stack, job: Job) -> None:
    found = find_collection(job, "made-by-a-backfill").target
    model = httpx.get(f"{stack.http}/v1/collections/{found.name}").json()["model"]
    assert (model["variant"], model["dimension"]) == (found.model.variant, found.model.dimension)
    assert found.model.crop_policy == job.target.model.crop_policy


def test_a_collection_of_another_model_is_refused(job: Job) -> None:
    other = job.target
    other.model.weights_digest = "0" * 64
    stage = Embed(job.with_collection(other))
    with pytest.raises(RegionSearchError) as caught:
        stage(to_table(rows(IMAGES[:1])))
    stage.close()
    assert caught.value.kind is Kind.MODEL_MISMATCH


def test_a_busy_searcher_is_asked_again_about_the_images_that_are_left(job: Job) -> None:
    asked: list[list[str]] = []

    class Busy(Stage):
        async def open(self) -> None:
            pass

        async def run(self, rows: Sequence[Row]) -> None:
            asked.append([row.source for row in rows])
            rows[0].fail(ValueError("done"))
            if len(asked) == 1:
                raise overloaded("busy", 0.01)

        async def aclose(self) -> None:
            pass

    stage = Busy(job)
    stage(to_table([Row("a"), Row("b"), Row("c")]))
    stage.close()
    assert asked == [["a", "b", "c"], ["b", "c"]]


def test_a_searcher_that_is_away_ends_the_run(job: Job, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGIONSEARCH_GATEWAY_SEARCHER", "127.0.0.1:9")
        away = Job.read(image_store=os.fspath(tmp_path), wait_s=0).with_collection(job.target)
    stage = Check(away)
    with pytest.raises(RegionSearchError) as caught:
        stage(to_table(rows(IMAGES[:1])))
    stage.close()
    assert caught.value.kind is Kind.UNAVAILABLE
