"""The main job: images in, words in, the thing itself out; over HTTP and over gRPC."""

from __future__ import annotations

import base64
import io

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

from regionsearch.masks import decode_rle
from regionsearch.tensors import mask_from_proto
from regionsearch.v1 import region_search_pb2, region_search_pb2_grpc, types_pb2
from tests.e2e.scenes import Scene, held_out_scenes, iou
from tests.stack import Stack

COLLECTION = "main-job"


@pytest.fixture(scope="module")
def http(stack: Stack) -> httpx.Client:
    return httpx.Client(base_url=stack.http, timeout=120)


@pytest.fixture(scope="module")
def scenes(http: httpx.Client) -> list[Scene]:
    """Eight scenes that no model has seen, ingested in one request."""
    assert http.post("/v1/collections", json={"name": COLLECTION}).status_code in (200, 201)
    scenes = held_out_scenes(8)
    files = [("files", (scene.path.name, scene.data)) for scene in scenes]
    results = (
        http.post(f"/v1/collections/{COLLECTION}/images", files=files).raise_for_status().json()["results"]
    )
    assert [result["outcome"] for result in results] == ["created"] * len(scenes), results
    return scenes


def search(http: httpx.Client, **body: object) -> list[dict]:
    response = http.post(f"/v1/collections/{COLLECTION}/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()["hits"]


def stored_id(http: httpx.Client, scene: Scene) -> str:
    images = http.get(f"/v1/collections/{COLLECTION}/images").raise_for_status().json()["images"]
    return next(image["image_id"] for image in images if image["name"] == scene.path.name)


def test_most_objects_are_found_by_their_names(http: httpx.Client, scenes: list[Scene]) -> None:
    found = asked = 0
    for scene in scenes:
        image_id = stored_id(http, scene)
        for thing in scene.things:
            hits = search(
                http,
                query={"text": thing.name},
                level="region",
                filter={"image_ids": [image_id]},
                page_size=1,
                include=["mask", "weak"],
            )
            height, width = hits[0]["mask"]["size"]
            asked += 1
            found += iou(decode_rle(hits[0]["mask"]["counts"], height, width), thing.mask) >= 0.5
    assert found / asked > 0.8, f"{found} of {asked}"


def test_most_objects_are_found_over_grpc_too(stack: Stack, scenes: list[Scene]) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        stub = region_search_pb2_grpc.RegionSearchServiceStub(channel)
        found: list[bool] = []
        for scene in scenes:
            answer = stub.IngestImage(
                region_search_pb2.IngestImageRequest(
                    collection=COLLECTION, image=types_pb2.Image(encoded=scene.data), name="again"
                ),
                timeout=120,
            )
            assert answer.outcome == region_search_pb2.INGEST_OUTCOME_DUPLICATE
            within = stub.SearchWithin(
                region_search_pb2.SearchWithinRequest(
                    collection=COLLECTION,
                    image_id=answer.image_id,
                    texts=[t.name for t in scene.things],
                    relative_cutoff=1,  # the best of each, however confident
                ),
                timeout=120,
            )
            assert len(within.regions) == answer.region_count > 0
            hits = [mask_from_proto(region.region.mask) for region in within.regions if region.is_hit]
            found += [max(iou(hit, thing.mask) for hit in hits) >= 0.5 for thing in scene.things]
        assert np.mean(found) > 0.75, f"{sum(found)} of {len(found)}"
        hits = stub.Search(
            region_search_pb2.RegionSearchServiceSearchRequest(
                collection=COLLECTION,
                query=region_search_pb2.Query(texts=[scenes[0].things[0].name]),
                page_size=5,
                include_weak=True,
            ),
            timeout=120,
        ).hits
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
        assert list(hits) == sorted(hits, key=lambda hit: -hit.score)


def test_health_and_reflection_on_the_gateway(stack: Stack) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=60)
        names = {service.name for service in answer.list_services_response.service}
        assert "regionsearch.v1.RegionSearchService" in names


def test_an_example_finds_its_own_image(http: httpx.Client, scenes: list[Scene]) -> None:
    scene = scenes[1]
    hits = search(http, query={"image": base64.b64encode(scene.data).decode()}, level="image", page_size=1)
    assert hits[0]["image"]["name"] == scene.path.name
    assert hits[0]["score"] > 0.99


def test_more_like_this_begins_with_the_region_itself(http: httpx.Client, scenes: list[Scene]) -> None:
    image_id = stored_id(http, scenes[2])
    regions = http.get(f"/v1/collections/{COLLECTION}/images/{image_id}/regions").raise_for_status().json()
    region_id = regions["regions"][0]["region_id"]
    hits = search(http, query={"region_id": region_id}, level="region", page_size=3)
    assert region_id in {hit["region_id"] for hit in hits}
    assert hits[0]["score"] > 0.99


def test_pointing_at_a_thing_finds_it(http: httpx.Client, scenes: list[Scene]) -> None:
    found = asked = 0
    for scene in scenes[:4]:
        image_id = stored_id(http, scene)
        for thing in scene.things:
            rows, columns = np.nonzero(thing.mask)
            middle = len(rows) // 2
            point = {"x": float(columns[middle]) + 0.5, "y": float(rows[middle]) + 0.5}
            hits = search(
                http,
                query={"image_id": image_id, "points": [point]},
                level="region",
                filter={"image_ids": [image_id]},
                page_size=1,
                include=["mask"],
            )
            height, width = hits[0]["mask"]["size"]
            asked += 1
            found += iou(decode_rle(hits[0]["mask"]["counts"], height, width), thing.mask) >= 0.5
    assert found / asked > 0.65, f"{found} of {asked}"


def test_the_outline_is_drawn_around_the_thing(http: httpx.Client, scenes: list[Scene]) -> None:
    scene = scenes[0]
    thing = max(scene.things, key=lambda t: t.mask.sum())
    response = http.post(
        "/v1/search-within",
        files={"image": (scene.path.name, scene.data)},
        data={"text": thing.name, "render": "outline", "relative_cutoff": "1"},
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    drawn = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB")).astype(int)
    original = np.asarray(Image.open(io.BytesIO(scene.data)).convert("RGB")).astype(int)
    assert drawn.shape == original.shape
    changed = np.abs(drawn - original).max(axis=2) > 40
    assert changed.any()


def test_a_duplicate_changes_nothing(http: httpx.Client, scenes: list[Scene]) -> None:
    before = http.get(f"/v1/collections/{COLLECTION}").json()
    response = http.post(
        f"/v1/collections/{COLLECTION}/images", files=[("files", ("another name.png", scenes[3].data))]
    )
    (result,) = response.json()["results"]
    assert result["outcome"] == "duplicate"
    assert result["image_id"] == stored_id(http, scenes[3])
    assert http.get(f"/v1/collections/{COLLECTION}").json() == before


def test_a_deleted_image_is_gone_everywhere(http: httpx.Client, scenes: list[Scene]) -> None:
    scene = held_out_scenes(9)[8]
    url = f"/v1/collections/{COLLECTION}/images"
    (result,) = http.post(url, files=[("files", (scene.path.name, scene.data))]).json()["results"]
    image_id = result["image_id"]
    assert http.get(f"{url}/{image_id}/content").content == scene.data
    assert http.delete(f"{url}/{image_id}").status_code in (200, 204)
    assert http.get(f"{url}/{image_id}").status_code == 404
    assert http.get(f"{url}/{image_id}/content").status_code == 404
    hits = search(http, query={"image": base64.b64encode(scene.data).decode()}, page_size=1000)
    assert image_id not in {hit["image_id"] for hit in hits}
