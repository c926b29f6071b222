"""What is confident, and that a search leaves the rest out."""

from __future__ import annotations

import pytest

from gateway.matches import judge
from regionsearch.v1 import embed_pb2, search_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, scene
from tests.gateway.fakes import Script


def test_only_regions_found_by_words_are_judged():
    region = search_pb2.Hit(score=0.3, record=search_pb2.Record(level=search_pb2.LEVEL_REGION))
    image = search_pb2.Hit(
        score=0.3, record=search_pb2.Record(level=search_pb2.LEVEL_IMAGE), best_region=region
    )
    judge(image, 0.25)
    assert image.best_region.confident
    assert not image.HasField("confident")
    judge(region, None)
    assert not region.HasField("confident")


@pytest.fixture
def calibrated(world: World, script: Script) -> Running:
    """A gateway whose embedder has a cut-off."""
    script.cut_offs = [embed_pb2.CutOff(crop_policy=script.model.crop_policy, score=0.9)]
    return world.gateway()


def test_a_search_answers_what_is_confident_and_the_rest_when_asked(
    calibrated: Running, collection: str
) -> None:
    add(calibrated, collection, ("a.png", scene(RED, BLUE)))

    def search(**options):
        body = {"query": {"text": "red"}} | options
        return calibrated.http.post(f"/v1/collections/{collection}/search", json=body).json()

    found = search()
    assert [hit["confident"] for hit in found["hits"]] == [True]
    assert found["cut_off"] == pytest.approx(0.9)
    assert search(query={"text": "lime"})["hits"] == []
    weak = search(include=["weak"])["hits"]
    assert [hit["confident"] for hit in weak] == [True, False]
    assert [hit["confident"] for hit in search(min_score=-1)["hits"]] == [True, False]
    assert len(search(relative_cutoff=0)["hits"]) == 2
    example = search(query={"region_id": found["hits"][0]["region_id"]})
    assert example["cut_off"] is None
    assert [hit["confident"] for hit in example["hits"]] == [None, None]

    pages = [search(include=["weak"], page_size=1)]
    while token := pages[-1]["next_page_token"]:
        pages.append(search(include=["weak"], page_size=1, page_token=token))
    assert [hit["confident"] for page in pages for hit in page["hits"]] == [True, False]
    assert all(page["cut_off"] == found["cut_off"] for page in pages)


def test_a_search_inside_an_image_can_find_nothing(calibrated: Running, collection: str) -> None:
    (result,) = add(calibrated, collection, ("a.png", scene(RED, BLUE)))
    body = {"collection": collection, "image_id": result["image_id"], "texts": ["lime"]}
    found = calibrated.http.post("/v1/search-within", json=body).json()
    assert [region["is_hit"] for region in found["regions"]] == [False, False]
    assert [region["confident"] for region in found["regions"]] == [False, False]
    body["texts"] = ["red"]
    found = calibrated.http.post("/v1/search-within", json=body).json()
    assert [region["is_hit"] for region in found["regions"]] == [True, False]


@pytest.mark.parametrize(
    ("query", "levels"), [({"text": "red"}, {"region"}), ({"image_id": None}, {"image"})]
)
def test_the_level_follows_the_query(
    gateway: Running, collection: str, query: dict, levels: set[str]
) -> None:
    (result,) = add(gateway, collection, ("a.png", scene(RED, BLUE)))
    if "image_id" in query:
        query = {"image_id": result["image_id"]}
    path = f"/v1/collections/{collection}/search"
    hits = gateway.http.post(path, json={"query": query}).json()["hits"]
    assert {hit["level"] for hit in hits} == levels
    hits = gateway.http.post(path, json={"query": query, "level": "both"}).json()["hits"]
    assert {hit["level"] for hit in hits} == {"region", "image"}


def test_every_phrase_of_an_image_is_found_when_asked(calibrated: Running, collection: str) -> None:
    add(calibrated, collection, ("both.png", scene(RED, BLUE)), ("one.png", scene(RED, GREEN)))

    def search(**options):
        body = {"query": {"texts": ["red", "blue"]}, "group_by": "image"} | options
        return calibrated.http.post(f"/v1/collections/{collection}/search", json=body).json()

    found = {hit["image"]["name"]: hit for hit in search(include=["others", "mask"])["hits"]}
    labels = {hit["label"] for hit in (found["both.png"], *found["both.png"]["others"])}
    assert labels == {"red", "blue"}
    assert all(other["mask"] for other in found["both.png"]["others"])
    assert found["one.png"]["others"] == []
    (only,) = search(all_phrases=True)["hits"]
    assert only["image"]["name"] == "both.png"
    assert search(all_phrases=True, group_by=None)["errors"][0]["pointer"] == "/all_phrases"
