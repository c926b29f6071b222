"""Examples and pointing with the pocket models, over HTTP and over gRPC: real masks, real vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from regionsearch.v1 import region_search_pb2, region_search_pb2_grpc, search_pb2, types_pb2
from tests.e2e.scenes import Scene, Thing, held_out_scenes, iou
from tests.stack import Stack

COLLECTION = "pocket-queries"


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.http, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def scenes(http: httpx.Client) -> list[Scene]:
    assert http.post("/v1/collections", json={"name": COLLECTION}).status_code == 201
    scenes = held_out_scenes(4)
    files = [("files", (scene.path.name, scene.data)) for scene in scenes]
    answer = http.post(f"/v1/collections/{COLLECTION}/images", files=files).raise_for_status().json()
    assert [result["outcome"] for result in answer["results"]] == ["created"] * len(scenes)
    return scenes


def search(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    response = http.post(f"/v1/collections/{COLLECTION}/search", json={"level": "region", **body})
    assert response.status_code == 200, response.text
    hits: list[dict[str, Any]] = response.json()["hits"]
    return hits


def middle(thing: Thing) -> tuple[float, float]:
    """A point of a thing that is on it."""
    rows, columns = np.nonzero(thing.mask)
    return float(columns[len(rows) // 2]) + 0.5, float(rows[len(rows) // 2]) + 0.5


def extent(thing: Thing) -> dict[str, float]:
    rows, columns = np.nonzero(thing.mask)
    return {
        "x_min": float(columns.min()),
        "y_min": float(rows.min()),
        "x_max": float(columns.max()) + 1,
        "y_max": float(rows.max()) + 1,
    }


def overlap(thing: Thing, box: Any) -> float:
    """IoU of a thing's box and a hit's."""
    ours, (height, width) = extent(thing), thing.mask.shape
    get = box.get if isinstance(box, dict) else lambda name: getattr(box, name)
    boxes = []
    for edge in (ours.__getitem__, get):
        mask = np.zeros((height, width), bool)
        mask[int(edge("y_min")) : round(edge("y_max")), int(edge("x_min")) : round(edge("x_max"))] = True
        boxes.append(mask)
    return iou(*boxes)


@pytest.mark.parametrize("prompt", ["points", "box"])
def test_pointing_inside_a_sent_image_selects_that_object(
    http: httpx.Client, scenes: list[Scene], stack: Stack, prompt: str
) -> None:
    """The image itself is in the collection, so that the thing's own region should come back first."""
    found = asked = 0
    with grpc.insecure_channel(stack.grpc) as channel:
        stub = region_search_pb2_grpc.RegionSearchServiceStub(channel)
        for scene in scenes:
            encoded = base64.b64encode(scene.data).decode()
            for thing in scene.things:
                x, y = middle(thing)
                query: dict[str, Any] = {"image": encoded}
                message = region_search_pb2.Query(image=types_pb2.Image(encoded=scene.data))
                if prompt == "points":
                    query["points"] = [{"x": x, "y": y}]
                    message.points.add(x=x, y=y, label=1)
                else:
                    query["box"] = extent(thing)
                    message.box.CopyFrom(types_pb2.Box(**extent(thing)))
                (hit,) = search(http, query=query, page_size=1)
                request = region_search_pb2.RegionSearchServiceSearchRequest(
                    collection=COLLECTION, query=message, level=search_pb2.LEVEL_REGION, page_size=1
                )
                (same,) = stub.Search(request, timeout=120).hits
                assert same.record.record_id == hit["region_id"]
                assert same.score == pytest.approx(hit["score"], abs=1e-5)
                asked += 1
                found += hit["image"]["name"] == scene.path.name and overlap(thing, hit["box"]) >= 0.5
    assert asked >= 8
    assert found / asked >= 0.6, f"{found} of {asked}"  # by chance it would be one of about fifty


def test_a_region_that_is_not_meant_takes_its_likes_away(http: httpx.Client, scenes: list[Scene]) -> None:
    """More like one thing, but not like another: the other one itself is out, the first one stays."""
    hits = search(http, query={"text": scenes[0].things[0].name}, page_size=1)
    liked = hits[0]["region_id"]
    every = search(http, query={"region_id": liked}, page_size=1000)
    unlike = every[len(every) // 2]["region_id"]
    kept = {h["region_id"] for h in search(
        http, query={"region_id": liked}, negatives=[{"region_id": unlike}], page_size=1000)}  # fmt: skip
    assert liked in kept
    assert unlike not in kept
    assert 1 < len(kept) < len(every)
