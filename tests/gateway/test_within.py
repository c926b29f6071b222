"""Searching inside one image, segmenting, embedding."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regionsearch.errors import invalid
from regionsearch.masks import decode_rle
from regionsearch.v1 import region_search_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, Shape, add, scene
from tests.gateway.fakes import Script

MAROON: Shape = ("maroon", (60, 5, 75, 15))
IMAGE = scene(RED, BLUE, GREEN, MAROON)


def within(gateway: Running, **body: Any) -> dict[str, Any]:
    response = gateway.http.post(
        "/v1/search-within", json={"image": base64.b64encode(IMAGE).decode(), **body}
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def area_of(*shapes: Shape) -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    for _, (left, top, right, bottom) in shapes:
        mask[top:bottom, left:right] = True
    return mask


def test_without_thresholds_the_best_region_of_each_phrase_is_a_hit(gateway: Running) -> None:
    answer = within(gateway, texts=["red", "blue"])
    assert (answer["width"], answer["height"]) == (160, 120)
    assert len(answer["regions"]) == 4
    scores = [region["score"] for region in answer["regions"]]
    assert scores == sorted(scores, reverse=True)
    assert {region["label"] for region in answer["regions"] if region["is_hit"]} == {"red", "blue"}
    union = decode_rle(answer["union_mask"]["counts"], *answer["union_mask"]["size"])
    assert (union == area_of(RED, BLUE)).all()


def test_thresholds_limit_what_is_a_hit(gateway: Running) -> None:
    def hits(**options: Any) -> int:
        return sum(region["is_hit"] for region in within(gateway, text="red", **options)["regions"])

    assert hits(relative_cutoff=0.9) == 2  # red and maroon
    assert hits(relative_cutoff=1.0) == 1
    assert hits(min_score=-1) == 4
    assert hits(min_score=0.9) == 2
    assert hits(min_score=0.9, relative_cutoff=0.999) == 1
    assert hits(min_score=1.1) == 0
    assert within(gateway, text="red", min_score=1.1)["union_mask"]["counts"]


def test_relevancy_is_that_of_a_search(gateway: Running, collection: str) -> None:
    """The gateway's own numbers for a sent image and the searcher's for the stored one."""
    (result,) = add(gateway, collection, ("a.png", IMAGE))
    query = {"query": {"text": "red"}, "negatives": ["maroon", "blue"], "min_relevancy": 0, "level": "region"}
    hits = gateway.http.post(f"/v1/collections/{collection}/search", json=query).json()["hits"]
    answer = within(gateway, text="red", negatives=["maroon", "blue"], min_relevancy=0)
    ours = sorted((region["box"]["x_min"], region["relevancy"]) for region in answer["regions"])
    theirs = sorted((hit["box"]["x_min"], hit["relevancy"]) for hit in hits)
    assert [x for x, _ in ours] == [x for x, _ in theirs]
    # Stored vectors have half precision, and a hundredfold cosine difference magnifies that.
    assert np.allclose([r for _, r in ours], [r for _, r in theirs], atol=0.03)
    assert result["outcome"] == "created"


def test_examples_of_what_is_not_meant(gateway: Running, collection: str) -> None:
    """In JSON, in a form where a file stands for itself, and over gRPC: the same numbers."""
    (result,) = add(gateway, collection, ("a.png", IMAGE))
    regions = gateway.http.get(f"/v1/collections/{collection}/images/{result['image_id']}/regions").json()
    maroon = next(region["region_id"] for region in regions["regions"] if region["area"] == 150)
    blue = scene(("blue", (0, 0, 160, 120)))
    options: dict[str, Any] = {"collection": collection, "text": "red", "min_relevancy": 0}
    examples = [{"image": base64.b64encode(blue).decode()}, {"region_id": maroon}]

    def relevancies(answer: dict[str, Any]) -> list[float]:
        return [region["relevancy"] for region in answer["regions"]]

    by_example = relevancies(within(gateway, **options, negatives=examples))
    by_phrase = relevancies(within(gateway, **options, negatives=["blue", "maroon"]))
    assert by_example == pytest.approx(by_phrase, abs=0.03)
    assert min(by_example) < 0.01 < 0.5 < max(by_example)
    files = [("image", ("a.png", IMAGE)), ("negatives", ("b.png", blue))]
    form = gateway.http.post("/v1/search-within", files=files, data=options | {"negatives": ["maroon"]})
    assert relevancies(form.json()) == pytest.approx(by_phrase, abs=0.03), form.text
    answer = gateway.grpc.SearchWithin(
        region_search_pb2.SearchWithinRequest(
            collection=collection,
            image=types_pb2.Image(encoded=IMAGE),
            texts=["red"],
            min_relevancy=0,
            negatives=[
                region_search_pb2.Negative(image=types_pb2.Image(encoded=blue)),
                region_search_pb2.Negative(region_id=maroon),
            ],
        )
    )
    assert [region.relevancy for region in answer.regions] == by_example


def test_a_stored_image_is_not_segmented_again(gateway: Running, collection: str, script: Script) -> None:
    (result,) = add(gateway, collection, ("a.png", IMAGE))
    script.calls.clear()
    response = gateway.http.post(
        "/v1/search-within",
        json={"collection": collection, "image_id": result["image_id"], "texts": ["red", "lime"]},
    )
    assert response.status_code == 200, response.text
    found = {
        region["label"]: region["region_id"] for region in response.json()["regions"] if region["is_hit"]
    }
    assert found.keys() == {"red", "lime"}
    assert all(region_id.startswith(result["image_id"]) for region_id in found.values())
    assert script.calls == {"EmbedTexts": 1}


@pytest.mark.parametrize("style", ["outline", "boxes", "mask"])
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_hits_are_drawn(gateway: Running, style: str, image_format: str) -> None:
    response = gateway.http.post(
        "/v1/search-within",
        files={"image": ("a.png", IMAGE)},
        data={"text": "blue", "render": style, "image_format": image_format},
    )
    assert response.headers["content-type"] == f"image/{image_format}", response.text
    drawn = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB")).astype(int)
    original = np.asarray(Image.open(io.BytesIO(IMAGE)).convert("RGB")).astype(int)
    changed = np.abs(drawn - original).max(axis=2) > 100
    inside = area_of(BLUE)
    if style == "mask":
        assert changed[inside].all()
    else:
        assert changed.any()
        if image_format == "png":
            assert not changed[inside].any()
    ys, xs = np.nonzero(changed)
    assert xs.min() >= 75
    assert ys.min() >= 25


def test_render_and_format_go_into_the_url_too(gateway: Running) -> None:
    body = {"image": base64.b64encode(IMAGE).decode(), "texts": ["red", "blue"]}
    response = gateway.http.post("/v1/search-within?render=boxes", json=body)
    assert response.headers["content-type"] == "image/png"
    document = gateway.http.post("/v1/search-within?format=coco", json=body).json()
    assert [a["area"] for a in document["annotations"]] == [4800, 1600]
    assert [c["name"] for c in document["categories"]] == ["red", "blue"]
    assert [a["category_id"] for a in document["annotations"]] == [2, 1]


def test_an_image_without_regions(gateway: Running) -> None:
    answer = within(gateway, image=base64.b64encode(scene()).decode(), text="red")
    assert answer["regions"] == []
    mask = decode_rle(answer["union_mask"]["counts"], *answer["union_mask"]["size"])
    assert mask.shape == (120, 160)
    assert not mask.any()


def test_grpc_says_the_same(gateway: Running) -> None:
    answer = gateway.grpc.SearchWithin(
        region_search_pb2.SearchWithinRequest(image=types_pb2.Image(encoded=IMAGE), texts=["red", "blue"])
    )
    over_http = within(gateway, texts=["red", "blue"])
    assert [one.score for one in answer.regions] == [one["score"] for one in over_http["regions"]]
    assert answer.union_mask.coco_rle == over_http["union_mask"]["counts"]


@pytest.mark.parametrize(
    "body",
    [
        {"text": "red"},
        {"image": "AAAA", "image_id": "x", "text": "red"},
        {"image_id": "0" * 64, "text": "red"},
        {"image_id": "0" * 64},
        {"image_id": "../../etc/passwd", "text": "red"},
        {"image_id": "0" * 64, "text": "red", "render": "glitter"},
        {"image_id": "0" * 64, "text": "red", "collection": "nowhere"},
        {"image": base64.b64encode(IMAGE[:200]).decode(), "text": "red"},
    ],
)
def test_bad_searches_within_an_image_are_refused(gateway: Running, body: dict[str, Any]) -> None:
    response = gateway.http.post("/v1/search-within", json=body)
    assert response.status_code in (400, 404, 415)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"]


def segment(gateway: Running, status: int = 200, **body: Any) -> dict[str, Any]:
    response = gateway.http.post("/v1/segment", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_segment_points_boxes_and_everything(gateway: Running) -> None:
    image = base64.b64encode(IMAGE).decode()
    everything = segment(gateway, image=image, everything=True)
    assert [region["area"] for region in everything["regions"]] == [4800, 1600, 400, 150]
    assert len(segment(gateway, image=image, everything={"max_regions": 2})["regions"]) == 2
    (result,) = segment(gateway, image=image, points=[{"x": 30, "y": 40}])["results"]
    assert result["candidates"][0]["area"] == 1600
    box = dict(zip(("x_min", "y_min", "x_max", "y_max"), BLUE[1], strict=True))
    several = segment(gateway, image=image, prompts=[{"box": box}, {"points": [{"x": 30, "y": 90}]}])
    assert [r["candidates"][0]["area"] for r in several["results"]] == [4800, 400]
    form = gateway.http.post(
        "/v1/segment",
        files={"image": ("a.png", IMAGE)},
        data={"points": json.dumps([{"x": 30, "y": 40}, {"x": 100, "y": 60, "label": 0}])},
    )
    assert form.json()["results"] == [result]


@pytest.mark.parametrize(("sent", "asked"), [({}, None), ({"zoom": True}, True), ({"zoom": False}, False)])
def test_segment_zooms_as_asked_or_as_the_model_does(
    gateway: Running, script: Script, sent: dict[str, bool], asked: bool | None
) -> None:
    segment(gateway, image=base64.b64encode(IMAGE).decode(), points=[{"x": 30, "y": 40}], **sent)
    prompts = script.requests[-1].prompts
    assert (prompts.zoom if prompts.HasField("zoom") else None) is asked


@pytest.mark.parametrize(
    ("fields", "field", "remedy"),
    [
        ([("text", "blue"), ("text", "red")], "text", "texts"),
        ([("text", "blue"), ("render", "mask"), ("render", "outline")], "render", "once"),
    ],
)
def test_a_scalar_field_of_a_form_may_not_repeat(
    gateway: Running, fields: list[tuple[str, str]], field: str, remedy: str
) -> None:
    parts = [("image", ("a.png", IMAGE)), *[(name, (None, value)) for name, value in fields]]
    response = gateway.http.post("/v1/search-within", files=parts)
    assert response.status_code == 400
    (problem,) = response.json()["errors"]
    assert problem["pointer"] == f"/{field}"
    assert remedy in problem["detail"]
    texts = [("image", ("a.png", IMAGE)), ("texts", (None, "blue")), ("texts", (None, "red"))]
    assert gateway.http.post("/v1/search-within", files=texts).status_code == 200


def test_segment_then_select(gateway: Running, collection: str, script: Script) -> None:
    (result,) = add(gateway, collection, ("a.png", IMAGE))
    script.calls.clear()
    stored = {"collection": collection, "image_id": result["image_id"], "among": "stored"}

    def area(**prompt: Any) -> int:
        (answer,) = segment(gateway, **stored, **prompt)["results"]
        return int(answer["candidates"][0]["area"])

    assert area(points=[{"x": 30, "y": 40}]) == 1600
    assert area(points=[{"x": 30, "y": 40}, {"x": 100, "y": 60}]) == 6400
    assert area(box={"x_min": 75, "y_min": 30, "x_max": 150, "y_max": 110}) == 4800
    assert not script.calls
    assert area(text="lime") == 400
    assert script.calls == {"EmbedTexts": 1}
    assert segment(gateway, 404, **stored, points=[{"x": 159, "y": 1}])["code"] == "NOT_FOUND"
    (outside,) = segment(gateway, 400, **stored, points=[{"x": 5000, "y": 5000}])["errors"]
    assert outside["pointer"] == "/points/0"
    (blank,) = segment(gateway, 400, **stored, text="\u200b")["errors"]
    assert blank["pointer"] == "/text"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"points": [{"x": 1, "y": 1}], "everything": True},
        {"text": "red"},
        {"among": "stored", "points": [{"x": 1, "y": 1}]},
        {"points": [{"x": "Infinity", "y": 1}]},
    ],
)
def test_a_bad_segment_request(gateway: Running, body: dict[str, Any]) -> None:
    assert segment(gateway, 400, image=base64.b64encode(IMAGE).decode(), **body)["errors"]


@pytest.mark.parametrize(
    ("field", "prompt", "pointer"),
    [
        ("prompts.prompts[0].box", {"box": {"x_min": 5, "y_min": 5, "x_max": 5, "y_max": 5}}, "/box"),
        ("prompts.prompts[1].points", {"prompts": [{"points": [{"x": 1, "y": 1}]}] * 2}, "/prompts/1/points"),
    ],
)
def test_a_prompt_that_the_segmenter_refuses_is_named_as_it_was_sent(
    gateway: Running, script: Script, field: str, prompt: dict[str, Any], pointer: str
) -> None:
    script.failures["Segment"] = [invalid(field, f"{field} is wrong")]
    problem = segment(gateway, 400, image=base64.b64encode(IMAGE).decode(), **prompt)
    assert problem["errors"] == [{"pointer": pointer, "detail": problem["detail"]}]
    assert "prompts.prompts" not in problem["detail"]


def test_embeddings_of_texts_and_images_are_returned(gateway: Running) -> None:
    texts = gateway.http.post("/v1/embeddings", json={"texts": ["red", "blue"]}).json()
    assert np.allclose(np.linalg.norm(texts["vectors"], axis=1), 1, atol=1e-5)
    assert texts["model"]["dimension"] == 4
    images = gateway.http.post("/v1/embeddings", files=[("images", ("a", IMAGE)), ("images", ("b", IMAGE))])
    assert len(images.json()["vectors"]) == 2
    for body in ({}, {"texts": [" "]}, {"texts": ["a"], "images": ["AAAA"]}, {"images": ["AAAA"]}):
        response = gateway.http.post("/v1/embeddings", json=body)
        assert response.status_code in (400, 415), body
