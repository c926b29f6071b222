"""Searches that cannot be: each answer names the field, over HTTP and over gRPC."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest

from regionsearch.errors import Kind, from_rpc_error, too_large
from regionsearch.v1 import region_search_pb2, types_pb2
from tests.gateway.conftest import RED, Running, scene
from tests.gateway.fakes import Script
from tests.gateway.searching import COLLECTION


def test_half_a_character_is_named_too(gateway: Running, filled: dict[str, str]) -> None:
    for body in (b'{"query": {"text": "\\ud800"}}', b'{"\\ud800": 1}'):
        headers = {"content-type": "application/json"}
        answer = gateway.http.post(f"/v1/collections/{COLLECTION}/search", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_ARGUMENT")


NO_TIME = {"attribute": "taken", "time": {"gte": "today"}}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/query"),
        ({"query": {}}, "/query"),
        ({"query": {"text": " "}}, "/query/text"),
        ({"query": {"text": "\u200b"}}, "/query/text"),
        ({"query": {"texts": ["\u2060\u00ad"]}}, "/query/texts/0"),
        ({"query": {"text": "a", "texts": ["b", ""]}}, "/query/texts/1"),
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
        ({"query": {"text": "a"}, "effort": 0}, "/effort"),
        ({"query": {"text": "a"}, "exact": "perhaps"}, "/exact"),
        ({"query": {"text": "a"}, "level": "universe"}, "/level"),
        ({"query": {"text": "a"}, "filter": {"min_area": "big"}}, "/filter/min_area"),
        ({"query": {"text": "a"}, "filter": {"color": "red"}}, "/filter/color"),
        ({"query": {"text": "a"}, "filter": {"conditions": [{}]}}, "/filter/conditions/0"),
        (
            {"query": {"text": "a"}, "filter": {"conditions": [{"tag": "a", "prefix": "b"}]}},
            "/filter/conditions/0",
        ),
        (
            {
                "query": {"text": "a"},
                "filter": {"conditions": [NO_TIME]},
            },
            "/filter/conditions/0/time/gte",
        ),
        ({"query": {"text": "a"}, "filter": {"region_ids": ["r"] * 10_001}}, "/filter/region_ids"),
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


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"points": [{"x": 1, "y": 1}, {"x": 5000, "y": 5000}]}, "/query/points/1"),
        ({"points": [{"x": -2, "y": 1}]}, "/query/points/0"),
        ({"box": {"x_min": 900, "y_min": 900, "x_max": 950, "y_max": 950}}, "/query/box"),
    ],
)
def test_pointing_outside_of_a_stored_image_is_refused_with_its_size(
    gateway: Running, filled: dict[str, str], query: dict[str, Any], pointer: str
) -> None:
    body = {"query": query | {"image_id": filled["green"]}}
    response = gateway.http.post(f"/v1/collections/{COLLECTION}/search", json=body)
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == pointer
    assert "outside of the image of 160 x 120 pixels" in response.json()["detail"]


def test_an_unknown_enum_value_is_refused_over_grpc(gateway: Running, filled: dict[str, str]) -> None:
    query = region_search_pb2.Query(texts=["red"])
    for field in ("level", "group_by"):
        request = region_search_pb2.RegionSearchServiceSearchRequest(collection=COLLECTION, query=query)
        setattr(request, field, 99)
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.Search(request)
        error = from_rpc_error(caught.value)
        assert (error.kind, error.field) == (Kind.INVALID_ARGUMENT, field)


@pytest.mark.parametrize("name", ["min_score", "relative_cutoff", "min_relevancy", "effort"])
def test_a_threshold_that_is_not_finite_is_refused(
    gateway: Running, filled: dict[str, str], name: str
) -> None:
    for value in (float("inf"), float("-inf"), float("nan")):
        query = region_search_pb2.Query(texts=["red"])
        request = region_search_pb2.RegionSearchServiceSearchRequest(collection=COLLECTION, query=query)
        setattr(request, name, value)
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.Search(request)
        error = from_rpc_error(caught.value)
        assert (error.kind, error.field) == (Kind.INVALID_ARGUMENT, name)
    for text in ("1e999", "-1e999", "NaN", "Infinity"):
        body = f'{{"query": {{"text": "red"}}, "{name}": {text}}}'
        response = gateway.http.post(
            f"/v1/collections/{COLLECTION}/search",
            content=body,
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 400, response.text


def test_an_unknown_collection_is_not_found(gateway: Running, script: Script) -> None:
    response = gateway.http.post("/v1/collections/nowhere/search", json={"query": {"text": "a"}})
    assert response.status_code == 404
    assert "nowhere" in response.json()["detail"]
    assert set(script.calls) <= {"EmbedTexts"}  # which begins while the collection is read


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
def test_errors_name_the_field_over_grpc(
    gateway: Running, filled: dict[str, str], query: region_search_pb2.Query, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.Search(
            region_search_pb2.RegionSearchServiceSearchRequest(collection=COLLECTION, query=query)
        )
    error = from_rpc_error(caught.value)
    assert error.kind in (Kind.INVALID_ARGUMENT, Kind.UNSUPPORTED_IMAGE)
    assert error.field == field


def test_an_image_refused_by_the_segmenter(gateway: Running, filled: dict[str, str], script: Script) -> None:
    """The field is called what the caller calls it, and the setting keeps its name."""
    limit = "image.encoded has 9 x 9 pixels, over the limit of 4 (max_image_pixels)"
    script.failures["Segment"] = [too_large("image.encoded", limit)]
    body = {"query": {"image": base64.b64encode(scene(RED)).decode(), "points": [{"x": 1, "y": 1}]}}
    response = gateway.http.post(f"/v1/collections/{COLLECTION}/search", json=body)
    assert response.status_code == 413
    assert response.json()["errors"][0]["pointer"] == "/query/image"
    assert response.json()["detail"] == f"query.{limit}"
