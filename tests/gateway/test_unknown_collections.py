"""A collection that is named and does not exist is NOT_FOUND, whatever else the request says."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest

from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import types_pb2
from tests.gateway.conftest import RED, Running, scene

FILE = scene(RED)
SENT = {"image": base64.b64encode(FILE).decode()}
STORED = {"image_id": "a" * 64}
POINTS = {"points": [{"x": 20, "y": 30}]}
SEARCH, WITHIN, SEGMENT = "/v1/collections/unknown/search", "/v1/search-within", "/v1/segment"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (SEARCH, {"query": {"text": "red"}}),
        (SEARCH, {"query": {"region_id": "r"}}),
        (SEARCH, {"query": SENT | POINTS}),
        (SEARCH, {"query": {"text": "red"}, "negatives": [SENT]}),
        (WITHIN, {"collection": "unknown", "text": "red"} | SENT),
        (WITHIN, {"collection": "unknown", "text": "red"} | STORED),
        (SEGMENT, {"collection": "unknown", "everything": True} | SENT),
        (SEGMENT, {"collection": "unknown"} | SENT | POINTS),
        (SEGMENT, {"collection": "unknown", "text": "red", "among": "stored"} | STORED),
        ("/v1/collections/unknown/images:check", {"image_ids": ["a" * 64]}),
    ],
)
def test_an_unknown_collection_is_not_found_over_http(
    gateway: Running, path: str, body: dict[str, Any]
) -> None:
    response = gateway.http.post(path, json=body)
    assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND"), response.text


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Search", pb.RegionSearchServiceSearchRequest(query=pb.Query(texts=["red"]))),
        ("SearchWithin", pb.SearchWithinRequest(image=types_pb2.Image(encoded=FILE), texts=["red"])),
        ("IngestImage", pb.IngestImageRequest(image=types_pb2.Image(encoded=FILE))),
        ("CheckImages", pb.CheckImagesRequest(image_ids=["a" * 64])),
        ("ListImages", pb.RegionSearchServiceListImagesRequest()),
        ("DeleteImage", pb.DeleteImageRequest(image_id="a" * 64)),
        ("UpdateImage", pb.UpdateImageRequest(update={"image_id": "a" * 64})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_collection_is_not_found_over_grpc(gateway: Running, method: str, request_: Any) -> None:
    request_.collection = "unknown"
    with pytest.raises(grpc.RpcError) as caught:
        getattr(gateway.grpc, method)(request_, timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_ids_to_check_are_needed_over_both_transports(gateway: Running) -> None:
    assert (
        gateway.http.post("/v1/collections/default/images:check", json={"image_ids": []}).status_code == 400
    )
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.CheckImages(pb.CheckImagesRequest(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
