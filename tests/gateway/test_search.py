"""Queries of every kind, through HTTP and, with the same answers, through gRPC."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.masks import decode_rle
from regionsearch.v1 import region_search_pb2, search_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, add, scene
from tests.gateway.fakes import Script, colour_vector

PICTURES = {
    "red and blue": scene(RED, BLUE),
    "green": scene(GREEN),
    "all": scene(RED, BLUE, GREEN, ("maroon", (60, 5, 75, 15))),
    "yellow": scene(("yellow", (0, 0, 80, 60))),
}
COLLECTION = "search-tests"


@pytest.fixture(scope="module")
def filled(shared_gateway: Running) -> Iterator[dict[str, str]]:
    """A collection with four pictures; their ids by name."""
    shared_gateway.http.post("/v1/collections", json={"name": COLLECTION})
    results = add(shared_gateway, COLLECTION, *PICTURES.items())
    yield {result["name"]: result["image_id"] for result in results}
    shared_gateway.http.delete(f"/v1/collections/{COLLECTION}")


def search(gateway: Running, status: int = 200, form: str = "json", **body: Any) -> Any:
    response = gateway.http.post(f"/v1/collections/{COLLECTION}/search?format={form}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def best(gateway: Running, **query: Any) -> tuple[str, str]:
    """Name and region of the best region."""
    hits = search(gateway, query=query, level="region", page_size=1)["hits"]
    return hits[0]["image"]["name"], hits[0]["region_id"]


def colour_at(gateway: Running, hit: dict[str, Any], name: str) -> tuple[int, ...]:
    """The picture's colour under a hit's mask."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(PICTURES[name])).convert("RGB"))
    mask = decode_rle(hit["mask"]["counts"], *hit["mask"]["size"])
    assert (pixels[mask] == pixels[mask][0]).all()
    return tuple(int(c) for c in pixels[mask][0])


def test_a_phrase_finds_its_regions(gateway: Running, filled: dict[str, str]) -> None:
    answer = search(gateway, query={"text": "blue"}, level="region", page_size=2, include=["mask"])
    assert {hit["image"]["name"] for hit in answer["hits"]} == {"red and blue", "all"}
    for hit in answer["hits"]:
        assert colour_at(gateway, hit, hit["image"]["name"]) == (0, 0, 255)
        assert hit["score"] == pytest.approx(1, abs=1e-3)
        assert hit["image_id"] == filled[hit["image"]["name"]]
    assert answer["model"]["variant"] == "colours"
    assert answer["truncated"] == [False]


def test_several_phrases_share_one_list_and_each_region_has_its_best(
    gateway: Running, filled: dict[str, str]
) -> None:
    hits = search(gateway, query={"texts": ["yellow", "lime"]}, level="region", relative_cutoff=0.99)["hits"]
    assert {(hit["image"]["name"], hit["label"], hit["text_index"]) for hit in hits} == {
        ("yellow", "yellow", 0),
        ("green", "lime", 1),
        ("all", "lime", 1),
    }


def test_a_picture_finds_itself(gateway: Running, filled: dict[str, str], script: Script) -> None:
    image = base64.b64encode(PICTURES["yellow"]).decode()
    for value in (image, f"data:image/png;base64,{image}"):
        hits = search(gateway, query={"image": value}, level="image", page_size=1)["hits"]
        assert hits[0]["image"]["name"] == "yellow"
        assert hits[0]["region_id"] is None
    hits = search(gateway, query={"image_id": filled["yellow"]}, level="image", page_size=1)["hits"]
    assert hits[0]["image"]["name"] == "yellow"
    assert script.calls["EmbedImages"] == 2  # a stored image's vector is there already


def test_more_like_this(gateway: Running, filled: dict[str, str], script: Script) -> None:
    _, region_id = best(gateway, text="lime")
    hits = search(gateway, query={"region_id": region_id}, level="region", page_size=2)["hits"]
    assert region_id in {hit["region_id"] for hit in hits}
    assert {hit["image"]["name"] for hit in hits} == {"green", "all"}
    assert [hit["label"] for hit in hits] == [None, None]
    assert script.calls["EmbedRegions"] == 0


def test_pointing_at_a_sent_picture(gateway: Running, filled: dict[str, str], script: Script) -> None:
    picture = base64.b64encode(scene(("lime", (0, 0, 100, 100)), ("yellow", (110, 0, 160, 120)))).decode()
    assert best(gateway, image=picture, points=[{"x": 130, "y": 60}])[0] == "yellow"
    box = {"x_min": 110, "y_min": 0, "x_max": 160, "y_max": 120}
    assert best(gateway, image=picture, box=box)[0] == "yellow"
    assert script.calls["Segment"] == 2


def test_pointing_at_a_stored_picture_asks_no_model(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    point, away = {"x": 30, "y": 40}, {"x": 100, "y": 60, "label": 0}
    for query in ({"points": [point]}, {"points": [point, away]}, {"box": dict(zip(
        ("x_min", "y_min", "x_max", "y_max"), RED[1], strict=True))}):  # fmt: skip
        hits = search(
            gateway, query={"image_id": filled["all"], **query}, level="region", page_size=2, include=["mask"]
        )["hits"]
        assert {hit["image"]["name"] for hit in hits} == {"red and blue", "all"}
        assert colour_at(gateway, hits[0], hits[0]["image"]["name"]) == (255, 0, 0)
    assert not script.calls


def test_several_foreground_points_merge(gateway: Running, filled: dict[str, str], script: Script) -> None:
    points = [{"x": 30, "y": 40}, {"x": 100, "y": 60}]
    search(gateway, query={"image_id": filled["red and blue"], "points": points}, level="region")
    assert script.calls == {"EmbedRegions": 1}
    (cut,) = script.requests[0].regions  # type: ignore[attr-defined]
    merged = decode_rle(cut.mask.coco_rle, cut.mask.height, cut.mask.width)
    expected = np.zeros((120, 160), bool)
    for _, (left, top, right, bottom) in (RED, BLUE):
        expected[top:bottom, left:right] = True
    assert (merged == expected).all()


def test_pointing_where_nothing_is_stored_asks_the_segmenter(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    response = search(gateway, 400, query={"image_id": filled["green"], "points": [{"x": 150, "y": 10}]})
    assert "points" in response["errors"][0]["pointer"]
    assert script.calls == {"Segment": 1}


def test_words_and_an_example_are_averaged(gateway: Running, filled: dict[str, str], script: Script) -> None:
    _, red = best(gateway, text="red")
    hits = search(gateway, query={"text": "blue", "region_id": red}, level="region", page_size=1000)["hits"]
    mean = colour_vector(np.array([255, 0, 0])) + colour_vector(np.array([0, 0, 255]))
    mean /= np.linalg.norm(mean)
    scores = {hit["score"] for hit in hits if hit["region_id"] == red}
    assert scores.pop() == pytest.approx(float(mean @ colour_vector(np.array([255, 0, 0]))), abs=2e-3)


def test_negatives_take_away(gateway: Running, filled: dict[str, str]) -> None:
    query = {"text": "red"}
    with_maroon = search(gateway, query=query, level="region", relative_cutoff=0.9)["hits"]
    assert len(with_maroon) == 3
    hits = search(
        gateway, query=query, negatives=["maroon"], level="region", relative_cutoff=0.9, min_relevancy=0.5
    )["hits"]
    assert len(hits) == 2
    assert all(hit["relevancy"] > 0.5 for hit in hits)


def test_negatives_of_every_kind(gateway: Running, filled: dict[str, str], script: Script) -> None:
    """A phrase, a picture, a stored region and a stored image of the same colour take the same away."""
    _, maroon = best(gateway, text="maroon")
    yellow = base64.b64encode(scene(("yellow", (0, 0, 160, 120)))).decode()
    body = {"query": {"texts": ["red", "lime"]}, "level": "region", "min_relevancy": 0, "page_size": 100}

    def relevancies(*negatives: Any) -> dict[str, float]:
        hits = search(gateway, **body, negatives=negatives)["hits"]
        return {hit["region_id"]: hit["relevancy"] for hit in hits}

    for phrase, example in (("maroon", {"region_id": maroon}), ("yellow", {"image": yellow})):
        by_phrase, by_example = relevancies(phrase), relevancies(example)
        assert by_phrase.keys() == by_example.keys()
        # A stored vector has half precision, and a hundredfold cosine difference magnifies that.
        assert all(by_example[key] == pytest.approx(by_phrase[key], abs=0.03) for key in by_phrase)
        assert min(by_phrase.values()) < 0.5 < 0.9 < max(by_phrase.values())
    whole = relevancies({"image_id": filled["green"]})
    sent = relevancies({"image": base64.b64encode(PICTURES["green"]).decode()})
    assert all(whole[key] == pytest.approx(sent[key], abs=0.03) for key in sent)
    # Several together: each counts, so that the smallest relevancy stays.
    mixed = relevancies("yellow", {"region_id": maroon}, {"image_id": filled["green"]})
    parts = [relevancies("yellow"), relevancies({"region_id": maroon}), whole]
    assert all(mixed[key] == pytest.approx(min(part[key] for part in parts), abs=1e-5) for key in mixed)


def test_pages_of_a_search_with_examples_of_what_is_not_meant(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    picture = base64.b64encode(scene(("yellow", (0, 0, 160, 120)))).decode()
    body = {"query": {"text": "red"}, "negatives": ["black", {"image": picture}], "min_relevancy": 0.0}
    first = search(gateway, **body, page_size=2)
    second = search(gateway, **body, page_size=2, page_token=first["next_page_token"])
    assert [hit["rank"] for hit in first["hits"] + second["hits"]] == [1, 2, 3, 4]
    assert script.calls == {"EmbedTexts": 1, "EmbedImages": 1}
    other = body | {"negatives": ["black", {"image": base64.b64encode(PICTURES["green"]).decode()}]}
    problem = search(gateway, 400, **other, page_size=2, page_token=first["next_page_token"])
    assert problem["errors"][0]["pointer"] == "/page_token"


def test_absence_is_an_answer(gateway: Running, filled: dict[str, str]) -> None:
    answer = search(gateway, query={"text": "cyan"}, level="region", min_score=0.999)
    assert answer["hits"] == []
    assert answer["next_page_token"] == ""


def test_grouping_and_levels(gateway: Running, filled: dict[str, str]) -> None:
    hits = search(gateway, query={"text": "red"}, group_by="image")["hits"]
    assert sorted(hit["image"]["name"] for hit in hits) == sorted(PICTURES)
    assert {hit["level"] for hit in search(gateway, query={"text": "red"}, level="image")["hits"]} == {
        "image"
    }
    both = search(gateway, query={"text": "red"})["hits"]
    assert {hit["level"] for hit in both} == {"image", "region"}


def test_filters(gateway: Running, filled: dict[str, str]) -> None:
    def names(**chosen: Any) -> set[str]:
        return {h["image"]["name"] for h in search(gateway, query={"text": "red"}, filter=chosen)["hits"]}

    assert names(image_ids=[filled["green"]]) == {"green"}
    assert names(exclude_image_ids=[filled["green"], filled["all"]]) == {"red and blue", "yellow"}
    _, red = best(gateway, text="red")
    regions = search(gateway, query={"text": "red"}, filter={"region_ids": [red]})["hits"]
    assert [hit["region_id"] for hit in regions] == [red]
    areas = search(gateway, query={"text": "red"}, filter={"min_area": 400, "max_area": 1600})["hits"]
    assert areas
    assert all(400 <= hit["area"] <= 1600 for hit in areas)


def test_pages_follow_each_other_without_embedding_again(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    body = {"query": {"texts": ["red", "blue"]}, "negatives": ["black"], "min_relevancy": 0.0}
    whole = search(gateway, **body, page_size=1000)["hits"]
    pages, token = [], ""
    while True:
        answer = search(gateway, **body, page_size=3, page_token=token)
        pages += answer["hits"]
        token = answer["next_page_token"]
        if not token:
            break
    assert pages == whole
    assert len(whole) > 6
    assert script.calls == {"EmbedTexts": 2}


@pytest.mark.parametrize("change", [{"query": {"text": "blue"}}, {"level": "image"}, {"page_size": 3}])
def test_a_token_belongs_to_its_request(
    gateway: Running, filled: dict[str, str], change: dict[str, Any]
) -> None:
    body = {"query": {"text": "red"}, "page_size": 2}
    token = search(gateway, **body)["next_page_token"]
    assert search(gateway, **body, page_token=token)["hits"]
    problem = search(gateway, 400, **(body | change), page_token=token)
    assert problem["errors"][0]["pointer"] == "/page_token"


@pytest.mark.parametrize("token", ["made up", "AAAA", "!", "ÿ", "a" * 5])
def test_a_made_up_token_is_refused(gateway: Running, filled: dict[str, str], token: str) -> None:
    assert "/page_token" in str(search(gateway, 400, query={"text": "a"}, page_token=token)["errors"])


def test_long_texts_say_that_they_were_cut(gateway: Running, filled: dict[str, str]) -> None:
    assert search(gateway, query={"texts": ["red", "red " * 100]})["truncated"] == [False, True]


def test_hits_as_coco(gateway: Running, filled: dict[str, str]) -> None:
    from pycocotools.coco import COCO

    document = search(gateway, form="coco", query={"texts": ["red", "lime"]}, level="region", min_score=0.99)
    index = COCO()
    index.dataset = document
    index.createIndex()
    assert [category["name"] for category in document["categories"]] == ["red", "lime"]
    for annotation in document["annotations"]:
        mask = index.annToMask(annotation).astype(bool)
        left, top, width, height = (int(v) for v in annotation["bbox"])
        assert mask.sum() == annotation["area"]
        assert mask[top : top + height, left : left + width].sum() == annotation["area"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/query"),
        ({"query": {}}, "/query"),
        ({"query": {"text": " "}}, "/query/texts/0"),
        ({"query": {"text": "a", "texts": ["b", ""]}}, "/query/texts/2"),
        ({"query": {"texts": ["a"] * 65}}, "/query/texts"),
        ({"query": {"image": "%%%"}}, "/query/image"),
        ({"query": {"image": "AAAA"}}, "/query/image"),
        ({"query": {"image": ""}}, "/query/image"),
        ({"query": {"image_id": "0" * 64}}, "/query/image_id"),
        ({"query": {"image_id": "0" * 64, "points": [{"x": 1, "y": 1}]}}, "/query/image_id"),
        ({"query": {"region_id": "nothing"}}, "/query/region_id"),
        ({"query": {"text": "a", "points": [{"x": 1, "y": 1}]}}, "/query/points"),
        ({"query": {"image_id": "x", "points": [{"x": 1, "y": 1, "label": 2}]}}, "/query/points/0/label"),
        ({"query": {"image_id": "x", "box": {"x_min": 1}}}, "/query/box/y_min"),
        ({"query": {"text": "a"}, "page_size": -1}, "/page_size"),
        ({"query": {"text": "a"}, "page_size": 10**12}, "/page_size"),
        ({"query": {"text": "a"}, "min_score": "NaN"}, "/min_score"),
        ({"query": {"text": "a"}, "relative_cutoff": 2}, "/relative_cutoff"),
        ({"query": {"text": "a"}, "level": "universe"}, "/level"),
        ({"query": {"text": "a"}, "filter": {"min_area": "big"}}, "/filter/min_area"),
        ({"query": {"text": "a"}, "filter": {"color": "red"}}, "/filter/color"),
        ({"query": {"text": "a"}, "surprise": 1}, "/surprise"),
        ({"query": {"text": "a"}, "negatives": ["b", " "]}, "/negatives/1"),
        ({"query": {"text": "a"}, "negatives": ["b"] * 65}, "/negatives"),
        ({"query": {"text": "a"}, "negatives": [{}]}, "/negatives/0"),
        ({"query": {"text": "a"}, "negatives": [7]}, "/negatives/0"),
        ({"query": {"text": "a"}, "negatives": [{"text": "b", "image_id": "c"}]}, "/negatives/0"),
        ({"query": {"text": "a"}, "negatives": ["b", {"region_id": "nothing"}]}, "/negatives/1/region_id"),
        ({"query": {"text": "a"}, "negatives": [{"image_id": "0" * 64}]}, "/negatives/0/image_id"),
        ({"query": {"text": "a"}, "negatives": [{"image": "%%%"}]}, "/negatives/0/image"),
        ({"query": {"text": "a"}, "negatives": ["b", {"image": "AAAA"}]}, "/negatives/1/image"),
        ({"query": "red"}, "/query"),
    ],
)
def test_a_bad_search_names_the_field(
    gateway: Running, filled: dict[str, str], body: dict[str, Any], pointer: str
) -> None:
    response = gateway.http.post(f"/v1/collections/{COLLECTION}/search", json=body)
    assert response.status_code in (400, 404, 413, 415)
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["errors"][0]["pointer"] == pointer, problem
    assert problem["code"] in {kind.value for kind in Kind}


def test_page_sizes_at_the_limits(gateway: Running, filled: dict[str, str]) -> None:
    assert len(search(gateway, query={"text": "red"}, page_size=0)["hits"]) == 12
    assert len(search(gateway, query={"text": "red"}, page_size=10**9)["hits"]) == 12


def test_an_unknown_collection_is_not_found(gateway: Running, script: Script) -> None:
    response = gateway.http.post("/v1/collections/nowhere/search", json={"query": {"text": "a"}})
    assert response.status_code == 404
    assert "nowhere" in response.json()["detail"]
    assert not script.calls


class TestGrpc:
    def test_the_same_hits(self, gateway: Running, filled: dict[str, str]) -> None:
        over_http = search(gateway, query={"text": "red"}, level="region", page_size=5)["hits"]
        over_grpc = gateway.grpc.Search(
            region_search_pb2.RegionSearchServiceSearchRequest(
                collection=COLLECTION,
                query=region_search_pb2.Query(texts=["red"]),
                level=search_pb2.LEVEL_REGION,
                page_size=5,
            )
        ).hits
        assert [hit.record.record_id for hit in over_grpc] == [hit["region_id"] for hit in over_http]
        assert [hit.score for hit in over_grpc] == [hit["score"] for hit in over_http]

    def test_negatives_of_every_kind(self, gateway: Running, filled: dict[str, str]) -> None:
        _, maroon = best(gateway, text="maroon")
        picture = PICTURES["yellow"]
        request = region_search_pb2.RegionSearchServiceSearchRequest(
            collection=COLLECTION,
            query=region_search_pb2.Query(texts=["red"]),
            level=search_pb2.LEVEL_REGION,
            min_relevancy=0,
            negatives=["black"],
            further_negatives=[
                region_search_pb2.Negative(text="blue"),
                region_search_pb2.Negative(region_id=maroon),
                region_search_pb2.Negative(image_id=filled["green"]),
                region_search_pb2.Negative(image=types_pb2.Image(encoded=picture)),
            ],
        )
        negatives = ["black", "blue", {"region_id": maroon}, {"image_id": filled["green"]}]
        negatives.append({"image": base64.b64encode(picture).decode()})
        over_http = search(
            gateway, query={"text": "red"}, level="region", min_relevancy=0, negatives=negatives
        )["hits"]
        over_grpc = gateway.grpc.Search(request).hits
        assert [hit.record.record_id for hit in over_grpc] == [hit["region_id"] for hit in over_http]
        assert [hit.relevancy for hit in over_grpc] == [hit["relevancy"] for hit in over_http]
        assert len({hit.relevancy for hit in over_grpc}) > 2

    @pytest.mark.parametrize(
        ("negative", "field"),
        [
            (region_search_pb2.Negative(), "further_negatives[1]"),
            (region_search_pb2.Negative(text=" "), "further_negatives[1]"),
            (region_search_pb2.Negative(region_id="x"), "further_negatives[1].region_id"),
            (
                region_search_pb2.Negative(image=types_pb2.Image(encoded=b"x")),
                "further_negatives[1].image.encoded",
            ),
        ],
    )
    def test_a_bad_negative_is_named(
        self, gateway: Running, filled: dict[str, str], negative: region_search_pb2.Negative, field: str
    ) -> None:
        fine = region_search_pb2.Negative(text="fine")
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.Search(
                region_search_pb2.RegionSearchServiceSearchRequest(
                    collection=COLLECTION,
                    query=region_search_pb2.Query(texts=["red"]),
                    further_negatives=[fine, negative],
                )
            )
        assert from_rpc_error(caught.value).field == field

    def test_list_and_delete(self, gateway: Running, collection: str) -> None:
        ids = [r["image_id"] for r in add(gateway, collection, ("a", scene(RED)), ("b", scene(BLUE)))]
        request = region_search_pb2.RegionSearchServiceListImagesRequest(collection=collection, page_size=1)
        page = gateway.grpc.ListImages(request)
        assert page.total_count == 2
        request.page_token = page.next_page_token
        both = [*page.images, *gateway.grpc.ListImages(request).images]
        assert {image.image_id for image in both} == set(ids)
        delete = region_search_pb2.DeleteImageRequest(collection=collection, image_id=ids[0])
        assert gateway.grpc.DeleteImage(delete).seq > 0
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.DeleteImage(delete)
        assert from_rpc_error(caught.value).kind is Kind.NOT_FOUND

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            (region_search_pb2.Query(), "query"),
            (region_search_pb2.Query(texts=[""]), "query.texts[0]"),
            (region_search_pb2.Query(image=types_pb2.Image(encoded=b"x")), "query.image.encoded"),
            (
                region_search_pb2.Query(image_id="x", points=[types_pb2.Point(x=float("nan"))]),
                "query.points[0]",
            ),
        ],
    )
    def test_errors_name_the_field(
        self, gateway: Running, filled: dict[str, str], query: region_search_pb2.Query, field: str
    ) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.Search(
                region_search_pb2.RegionSearchServiceSearchRequest(collection=COLLECTION, query=query)
            )
        error = from_rpc_error(caught.value)
        assert error.kind in (Kind.INVALID_ARGUMENT, Kind.UNSUPPORTED_IMAGE)
        assert error.field == field
