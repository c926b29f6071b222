"""Phrases that the segmenter finds itself, over HTTP, gRPC and the client."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from regionsearch.client import Client
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import region_search_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, scene
from tests.gateway.fakes import Script


@pytest.fixture
def able(world: World, script: Script) -> Running:
    """A gateway whose segmenter takes phrases."""
    script.takes_phrases = True
    return world.gateway()


@pytest.fixture
def client(able: Running) -> Iterator[Client]:
    with Client(str(able.http.base_url)) as client:
        yield client


def test_the_segmenter_finds_phrases_in_an_image_that_is_sent_along(client: Client, script: Script) -> None:
    assert client.models().segmenter.takes_phrases
    found = client.within(["red", "lime", "blue"], image=scene(RED, BLUE))
    assert found.found_by == "segmenter"
    assert sorted(region.label for region in found.hits) == ["blue", "red"]
    assert [region.score for region in found.regions] == pytest.approx([0.9, 0.9])
    assert found.model.family == "sam"
    assert found.truncated == (False, False, False)
    assert found.union_mask.to_array().sum() == sum(region.area for region in found.hits)
    assert script.calls["EmbedTexts"] == script.calls["EmbedRegions"] == 0
    assert client.render(["red"], image=scene(RED, BLUE)).startswith(b"\x89PNG")


def test_the_embedder_compares_where_it_is_asked_for_or_needed(
    client: Client, able: Running, collection: str
) -> None:
    image = scene(RED, BLUE)
    (stored,) = add(able, collection, ("a.png", image))
    for options in ({"find_by": "embedder"}, {"min_score": 0.1}, {"negatives": ["blue"]}):
        found = client.within("red", image=image, **options)
        assert found.found_by == "embedder"
        assert len(found.regions) == 2
    there = client.within("red", image_id=stored["image_id"], collection=collection)
    assert there.found_by == "embedder"
    there = client.within("red", image_id=stored["image_id"], collection=collection, find_by="segmenter")
    assert there.found_by == "segmenter"
    assert [region.label for region in there.regions] == ["red"]


def test_segment_answers_all_that_phrases_name(client: Client, able: Running) -> None:
    image = scene(RED, BLUE, GREEN)
    found = client.segment(image=image, texts=["red", "yellow"], min_score=0.3)
    assert [len(result.candidates) for result in found.results] == [1, 0]
    assert found.truncated == (False, False)
    assert client.segment(image=image, texts="red").results[0].candidates[0].predicted_iou == pytest.approx(
        0.9
    )
    answer = able.http.post(
        "/v1/segment?format=coco", files={"image": ("a.png", image)}, data={"texts": ["blue", "red"]}
    ).json()
    names = {one["id"]: one["name"] for one in answer["categories"]}
    assert [names[one["category_id"]] for one in answer["annotations"]] == ["blue", "red"]
    for fields in (
        {"texts": "red", "everything": "true"},
        {"points": '[{"x": 3, "y": 4}]', "min_score": "0.5"},
    ):
        refused = able.http.post("/v1/segment", files={"image": ("a.png", image)}, data=fields)
        assert refused.status_code == 400, refused.text


def test_grpc_chooses_in_the_same_way(able: Running) -> None:
    request = region_search_pb2.SearchWithinRequest(image=types_pb2.Image(encoded=scene(RED)), texts=["red"])
    assert able.grpc.SearchWithin(request).found_by == region_search_pb2.FIND_BY_SEGMENTER
    request.find_by = region_search_pb2.FIND_BY_EMBEDDER
    assert able.grpc.SearchWithin(request).found_by == region_search_pb2.FIND_BY_EMBEDDER
    request.find_by = region_search_pb2.FIND_BY_SEGMENTER
    request.relative_cutoff = 0.5
    with pytest.raises(grpc.RpcError, match="relative_cutoff needs the embedder"):
        able.grpc.SearchWithin(request)


def test_a_segmenter_that_does_not_take_phrases_is_not_asked_and_refuses_them(gateway: Running) -> None:
    with Client(str(gateway.http.base_url)) as client:
        assert client.within("red", image=scene(RED)).found_by == "embedder"
        for ask in (
            lambda: client.within("red", image=scene(RED), find_by="segmenter"),
            lambda: client.segment(image=scene(RED), texts="red"),
        ):
            with pytest.raises(RegionSearchError, match="it does not take phrases") as caught:
                ask()
            assert caught.value.kind is Kind.FAILED_PRECONDITION
            assert caught.value.field == "texts"
