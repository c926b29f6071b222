"""Queries of every kind, through HTTP and, with the same answers, through gRPC."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import numpy as np
import pytest

from regionsearch.errors import from_rpc_error
from regionsearch.masks import decode_rle
from regionsearch.v1 import region_search_pb2, search_pb2
from tests.gateway.conftest import BLUE, RED, Running, scene
from tests.gateway.fakes import Script, colour_vector
from tests.gateway.searching import COLLECTION, IMAGES, best, search


def colour_at(gateway: Running, hit: dict[str, Any], name: str) -> tuple[int, ...]:
    """The image's colour under a hit's mask."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(IMAGES[name])).convert("RGB"))
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


def test_an_image_finds_itself(gateway: Running, filled: dict[str, str], script: Script) -> None:
    image = base64.b64encode(IMAGES["yellow"]).decode()
    for value in (image, f"data:image/png;base64,{image}"):
        hits = search(gateway, query={"image": value}, level="image", page_size=1)["hits"]
        assert hits[0]["image"]["name"] == "yellow"
        assert hits[0]["region_id"] is None
    hits = search(gateway, query={"image_id": filled["yellow"]}, level="image", page_size=1)["hits"]
    assert hits[0]["image"]["name"] == "yellow"
    assert script.calls["EmbedImages"] == 2  # a stored image's vector is there already


def test_a_search_by_a_region_finds_more_like_it(
    gateway: Running, filled: dict[str, str], script: Script
) -> None:
    _, region_id = best(gateway, text="lime")
    hits = search(gateway, query={"region_id": region_id}, level="region", page_size=2)["hits"]
    assert region_id in {hit["region_id"] for hit in hits}
    assert {hit["image"]["name"] for hit in hits} == {"green", "all"}
    assert [hit["label"] for hit in hits] == [None, None]
    assert script.calls["EmbedRegions"] == 0


def test_pointing_at_a_sent_image(gateway: Running, filled: dict[str, str], script: Script) -> None:
    image = base64.b64encode(scene(("lime", (0, 0, 100, 100)), ("yellow", (110, 0, 160, 120)))).decode()
    assert best(gateway, image=image, points=[{"x": 130, "y": 60}])[0] == "yellow"
    box = {"x_min": 110, "y_min": 0, "x_max": 160, "y_max": 120}
    assert best(gateway, image=image, box=box)[0] == "yellow"
    assert script.calls["Segment"] == 2


def test_pointing_at_a_stored_image_asks_no_model(
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
    assert response["errors"][0]["pointer"] == "/query/points"
    assert script.calls == {"Segment": 1}
    box = dict(zip(("x_min", "y_min", "x_max", "y_max"), (100, 5, 120, 20), strict=True))
    image = base64.b64encode(IMAGES["green"]).decode()
    response = search(gateway, 400, query={"image": image, "box": box})
    assert response["errors"][0]["pointer"] == "/query/box"


def test_words_and_an_example_are_averaged(gateway: Running, filled: dict[str, str], script: Script) -> None:
    _, red = best(gateway, text="red")
    hits = search(gateway, query={"text": "blue", "region_id": red}, level="region", page_size=1000)["hits"]
    mean = colour_vector(np.array([255, 0, 0])) + colour_vector(np.array([0, 0, 255]))
    mean /= np.linalg.norm(mean)
    scores = {hit["score"] for hit in hits if hit["region_id"] == red}
    assert scores.pop() == pytest.approx(float(mean @ colour_vector(np.array([255, 0, 0]))), abs=2e-3)


def test_absence_is_an_answer(gateway: Running, filled: dict[str, str]) -> None:
    answer = search(gateway, query={"text": "cyan"}, level="region", min_score=0.999)
    assert answer["hits"] == []
    assert answer["next_page_token"] == ""


def test_grouping_and_levels(gateway: Running, filled: dict[str, str]) -> None:
    hits = search(gateway, query={"text": "red"}, group_by="image")["hits"]
    assert sorted(hit["image"]["name"] for hit in hits) == sorted(IMAGES)
    assert {hit["level"] for hit in search(gateway, query={"text": "red"}, level="image")["hits"]} == {
        "image"
    }
    both = search(gateway, query={"text": "red"}, level="both")["hits"]
    assert {hit["level"] for hit in both} == {"image", "region"}


def test_searches_are_filtered_by_each_condition(gateway: Running, filled: dict[str, str]) -> None:
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


def test_filters_by_the_time_of_the_image(gateway: Running, filled: dict[str, str]) -> None:
    listed = gateway.http.get(f"/v1/collections/{COLLECTION}/images").json()["images"]
    times = {image["name"]: image["created_at"] for image in listed}
    since = times["red and blue"]
    for bound, expected in (
        ("created_after", {name for name, time in times.items() if time >= since}),
        ("created_before", {name for name, time in times.items() if time < since}),
    ):
        body = {"query": {"text": "red"}, "level": "image", "filter": {bound: since}}
        assert {hit["image"]["name"] for hit in search(gateway, **body)["hits"]} == expected
    assert (
        search(gateway, 400, query={"text": "red"}, filter={"created_after": "yesterday"})["errors"][0][
            "pointer"
        ]
        == "/filter/created_after"
    )


def test_long_texts_say_that_they_were_cut(gateway: Running, filled: dict[str, str]) -> None:
    assert search(gateway, query={"texts": ["red", "red " * 100]})["truncated"] == [False, True]


def test_hits_come_as_a_coco_document(gateway: Running, filled: dict[str, str]) -> None:
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


def test_the_same_hits_over_grpc(gateway: Running, filled: dict[str, str]) -> None:
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


def test_exact_and_effort_reach_the_searcher_on_every_page(gateway: Running, filled: dict[str, str]) -> None:
    plain = search(gateway, query={"text": "blue"}, page_size=100)["hits"]
    body: dict[str, Any] = {"query": {"text": "blue"}, "page_size": 3, "exact": True, "effort": 2.5}
    hits: list[dict[str, Any]] = []
    while True:
        answer = search(gateway, **body)
        hits += answer["hits"]
        if not answer["next_page_token"]:
            break
        body["page_token"] = answer["next_page_token"]
    assert [(hit["rank"], hit["score"], hit["region_id"]) for hit in hits] == [
        (hit["rank"], hit["score"], hit["region_id"]) for hit in plain
    ]
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.Search(
            region_search_pb2.RegionSearchServiceSearchRequest(
                collection=COLLECTION, query=region_search_pb2.Query(texts=["blue"]), effort=2000
            )
        )
    assert from_rpc_error(caught.value).field == "effort"


def test_a_form_has_the_fields_of_the_query_next_to_the_others(
    gateway: Running, filled: dict[str, str]
) -> None:
    """As the other routes that take an image: `curl -F image=@mug.jpg -F page_size=3`."""
    image = {"image": ("red.png", scene(RED))}
    found = gateway.http.post(f"/v1/collections/{COLLECTION}/search", files=image, data={"page_size": "3"})
    assert found.status_code == 200, found.text
    assert {hit["level"] for hit in found.json()["hits"]} == {"image"}
    data = {"texts": ["red", "lime"], "filter": f'{{"image_ids": ["{filled["green"]}"]}}', "level": "region"}
    words = gateway.http.post(
        f"/v1/collections/{COLLECTION}/search", data=data, files={"include": (None, "mask")}
    )
    assert {hit["image_id"] for hit in words.json()["hits"]} == {filled["green"]}
    assert words.json()["hits"][0]["label"] == "lime"
    both = [("image_ids", (None, filled[name])) for name in ("green", "yellow")]
    alike = gateway.http.post(f"/v1/collections/{COLLECTION}/search", files=both)
    assert {hit["image_id"] for hit in alike.json()["hits"][:2]} == {filled["green"], filled["yellow"]}
    nothing = gateway.http.post(f"/v1/collections/{COLLECTION}/search", files={"page_size": (None, "3")})
    assert nothing.json()["errors"][0]["pointer"] == "/query"


def test_several_stored_examples_are_averaged_over_both_transports(
    gateway: Running, filled: dict[str, str]
) -> None:
    _, red = best(gateway, text="red")
    _, blue = best(gateway, text="blue")
    middle = colour_vector((255, 0, 0)) + colour_vector((0, 0, 255))
    query = {"region_ids": [red, blue]}
    hits = search(gateway, query=query, level="region", page_size=50)["hits"]
    for hit in hits:
        if hit["region_id"] in (red, blue):
            expected = middle @ colour_vector((255, 0, 0)) / np.linalg.norm(middle)
            assert hit["score"] == pytest.approx(expected, abs=1e-2)
    message = region_search_pb2.RegionSearchServiceSearchRequest(
        collection=COLLECTION, query=query, level=search_pb2.LEVEL_REGION, page_size=50
    )
    over_grpc = gateway.grpc.Search(message).hits
    assert [hit.record.record_id for hit in over_grpc] == [hit["region_id"] for hit in hits]
    images = search(gateway, query={"image_ids": list(filled.values())[:2]})["hits"]
    assert {hit["level"] for hit in images} == {"image"}
    problem = search(gateway, 404, query={"region_ids": [red, "none"]})
    assert problem["errors"][0]["pointer"] == "/query/region_ids/1"
    assert search(gateway, 413, query={"image_ids": ["a"] * 65})["code"] == "TOO_LARGE"
