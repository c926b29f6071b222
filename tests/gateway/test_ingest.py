"""Images in: outcomes, order of the writes, idempotency, failures in every stage."""

from __future__ import annotations

import hashlib
import json
import socket

import pytest

from regionsearch.errors import Kind, RegionSearchError, overloaded
from regionsearch.v1 import region_search_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, Shape, World, add, count, scene
from tests.gateway.fakes import EMBEDDER, Script
from tests.waiting import wait_for


def test_an_image_goes_in_and_is_found_by_words(gateway: Running, collection: str) -> None:
    data = scene(RED, BLUE)
    (result,) = add(gateway, collection, ("two things.png", data))
    assert result == {
        "name": "two things.png",
        "outcome": "created",
        "image_id": hashlib.sha256(data).hexdigest(),
        "regions": 2,
        "tags": [],
        "seq": result["seq"],
    }
    answer = gateway.http.post(
        f"/v1/collections/{collection}/search",
        json={"query": {"text": "red"}, "level": "region", "include": ["mask"], "min_seq": result["seq"]},
    )
    assert answer.status_code == 200, answer.text
    hits = answer.json()["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["box"] == {"x_min": 10, "y_min": 20, "x_max": 50, "y_max": 60}
    assert hits[0]["label"] == "red"
    assert hits[0]["image"]["name"] == "two things.png"
    assert hits[0]["mask"]["size"] == [120, 160]


def test_a_form_field_that_does_not_exist_is_refused(gateway: Running, collection: str) -> None:
    for name in ("max_regions", "selection"):
        answer = gateway.http.post(
            f"/v1/collections/{collection}/images",
            files=[("files", ("a.png", scene(RED)))],
            data={name: "25"},
        )
        assert answer.status_code == 400, answer.text
        assert name in answer.json()["detail"]
    assert count(gateway, collection) == 0


def test_the_default_collection_is_there_from_the_start_and_again_after_its_deletion(
    gateway: Running,
) -> None:
    assert gateway.http.get("/v1/collections/default").json()["model"]["crop_policy"] == "blur"
    assert gateway.http.delete("/v1/collections/default").status_code == 204
    assert gateway.http.get("/v1/collections/default").json()["image_count"] == 0


def test_the_same_bytes_again_change_nothing(gateway: Running, collection: str, script: Script) -> None:
    data = scene(RED)
    results = add(gateway, collection, ("a.png", data), ("b.png", data), ("c.png", data))
    assert sorted(result["outcome"] for result in results) == ["created", "duplicate", "duplicate"]
    assert script.calls["Segment"] == 1
    before = gateway.http.get(f"/v1/collections/{collection}/images").json()
    (again,) = add(gateway, collection, ("another name.png", data))
    assert again["outcome"] == "duplicate"
    assert again["regions"] == 1
    assert gateway.http.get(f"/v1/collections/{collection}/images").json() == before


def test_an_idempotency_key_repeats_the_first_answer(gateway: Running, collection: str) -> None:
    url, data = f"/v1/collections/{collection}/images", scene(GREEN)

    def send(key: str | None) -> dict:
        headers = {} if key is None else {"Idempotency-Key": key}
        response = gateway.http.post(url, files=[("files", ("a.png", data))], headers=headers)
        return response.json()["results"][0]

    assert [send(key)["outcome"] for key in ("k1", "k1", "k2", None)] == [
        "created", "created", "duplicate", "duplicate",
    ]  # fmt: skip
    image = gateway.http.get(f"{url}/{hashlib.sha256(data).hexdigest()}").json()
    assert image["attributes"] == {}
    # Nor does anybody see the key over gRPC.
    listed = region_search_pb2.RegionSearchServiceListImagesRequest(collection=collection)
    (other,) = gateway.grpc.ListImages(listed).images
    query = region_search_pb2.Query(image_id=other.image_id)
    found = region_search_pb2.RegionSearchServiceSearchRequest(collection=collection, query=query)
    for image in (other, *(hit.image for hit in gateway.grpc.Search(found).hits)):
        assert not image.attributes


@pytest.mark.parametrize("key", ["x" * 256, "a\tb"])
def test_a_bad_idempotency_key_is_refused(gateway: Running, collection: str, key: str) -> None:
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("a.png", scene(RED)))],
        headers={"Idempotency-Key": key},
    )
    assert response.status_code == 400
    assert count(gateway, collection) == 0


@pytest.mark.parametrize("method", ["Segment", "EmbedRegions"])
def test_a_failure_leaves_nothing_and_a_retry_heals(
    gateway: Running, collection: str, script: Script, method: str
) -> None:
    script.failures[method] = [RegionSearchError(Kind.INTERNAL, "the device is lost")]
    data = scene(RED, BLUE)
    answer = gateway.http.post(f"/v1/collections/{collection}/images", files=[("files", ("a.png", data))])
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
    assert count(gateway, collection) == 0
    assert not list(gateway.store.glob(f"{collection}/*/*"))
    assert add(gateway, collection, ("a.png", data))[0]["outcome"] == "created"


def test_one_bad_file_fails_alone_and_says_why(gateway: Running, collection: str) -> None:
    results = add(gateway, collection, ("a.txt", b"not an image"), ("b.png", scene(RED)), ("c.png", b""))
    assert [result["outcome"] for result in results] == ["failed", "created", "failed"]
    assert results[0]["error"]["code"] == "UNSUPPORTED_IMAGE"
    assert results[2]["error"]["code"] == "INVALID_ARGUMENT"
    assert results[2]["error"]["errors"][0]["pointer"].startswith("/image")


def test_overload_of_a_service_reaches_the_caller_of_one_image(
    gateway: Running, collection: str, script: Script
) -> None:
    script.failures["Segment"] = [overloaded("the queue is full", 12.5)]
    response = gateway.http.post(
        f"/v1/collections/{collection}/images", files=[("files", ("a.png", scene(RED)))]
    )
    assert response.status_code == 429
    assert response.headers["retry-after"] == "13"
    assert response.json()["code"] == "OVERLOADED"
    assert "the segmenter is overloaded" in response.json()["detail"]


def test_many_images_wait_out_a_short_overload(gateway: Running, collection: str, script: Script) -> None:
    script.failures["Segment"] = [overloaded("the queue is full", 0.01)] * 2
    results = add(gateway, collection, ("a.png", scene(RED)), ("b.png", scene(BLUE)))
    assert [result["outcome"] for result in results] == ["created", "created"]
    assert script.calls["Segment"] == 4


def test_many_regions_go_out_in_chunks_and_keep_their_order(
    world: World, collection: str, script: Script
) -> None:
    gateway = world.gateway(embed_chunk=32)
    shapes: list[Shape] = [
        (f"rgb({40 + 4 * i},{250 - 5 * i},{(i * 67) % 256})", (4 * i, 0, 4 * i + 4, 120 - i))
        for i in range(40)
    ]
    (result,) = add(gateway, collection, ("many.png", scene(*shapes)))
    assert result["regions"] == 40
    assert script.calls["EmbedRegions"] == 2
    url = f"/v1/collections/{collection}"
    regions = gateway.http.get(f"{url}/images/{result['image_id']}/regions").json()["regions"]
    for region in (regions[0], regions[25], regions[39]):
        body = {"query": {"region_id": region["region_id"]}, "level": "region", "page_size": 1}
        (hit,) = gateway.http.post(f"{url}/search", json=body).json()["hits"]
        assert hit["region_id"] == region["region_id"]
        assert hit["score"] == pytest.approx(1, abs=1e-3)


def test_an_image_without_regions_is_kept_as_a_whole(gateway: Running, collection: str) -> None:
    (result,) = add(gateway, collection, ("white.png", scene()))
    assert (result["outcome"], result["regions"]) == ("created", 0)
    url = f"/v1/collections/{collection}"
    assert gateway.http.get(f"{url}/images/{result['image_id']}/regions").json()["regions"] == []
    hits = gateway.http.post(f"{url}/search", json={"query": {"text": "white"}, "level": "both"}).json()[
        "hits"
    ]
    assert [(hit["level"], hit["region_id"]) for hit in hits] == [("image", None)]


def test_progress_comes_as_server_sent_events(gateway: Running, collection: str) -> None:
    files = [("files", ("a.png", scene(RED))), ("files", ("bad", b"x"))]
    with gateway.http.stream(
        "POST", f"/v1/collections/{collection}/images", files=files, headers={"Accept": "text/event-stream"}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.read().decode().strip().split("\n\n")
    events = [(b.split("\n")[0].removeprefix("event: "), json.loads(b.split("data: ")[1])) for b in blocks]
    stages = [data["stage"] for event, data in events if event == "progress" and data["index"] == 0]
    assert stages == ["received", "segmenting", "embedding", "storing", "done"]
    results = {data["index"]: data["outcome"] for event, data in events if event == "result"}
    assert results == {0: "created", 1: "failed"}
    assert events[-1][0] == "done"
    assert [result["outcome"] for result in events[-1][1]["results"]] == ["created", "failed"]


def test_a_client_that_disconnects_cancels_the_work(
    gateway: Running, collection: str, script: Script, world: World
) -> None:
    import asyncio

    script.hold["Segment"] = world.call(asyncio.Event)
    files = [("files", ("a.png", scene(RED)))]
    request = gateway.http.build_request("POST", f"/v1/collections/{collection}/images", files=files)
    head = b"".join(b"%s: %s\r\n" % header for header in request.headers.raw)
    with socket.create_connection((request.url.host, request.url.port)) as client:
        client.sendall(b"POST %s HTTP/1.1\r\n%s\r\n%s" % (request.url.raw_path, head, request.read()))
        wait_for(lambda: script.calls["Segment"] == 1)
    wait_for(lambda: script.cancelled["Segment"] == 1)
    world.call(script.hold.pop("Segment").set)
    assert add(gateway, collection, ("a.png", scene(RED)))[0]["outcome"] == "created"


def test_another_model_is_refused_before_the_work_begins(
    world: World, collection: str, script: Script
) -> None:
    gateway = world.gateway()  # which remembers no model
    other = types_pb2.ModelInfo()
    other.CopyFrom(EMBEDDER)
    other.weights_digest = "f" * 64
    script.model = other
    (result,) = add(gateway, collection, ("a.png", scene(RED)))
    assert result["error"]["code"] == "MODEL_MISMATCH"
    assert "eeeeeeeeeeee" in result["error"]["metadata"]["expected"]
    assert "ffffffffffff" in result["error"]["metadata"]["actual"]
    assert script.calls["Segment"] == 0
    response = gateway.http.post(f"/v1/collections/{collection}/search", json={"query": {"text": "red"}})
    assert response.status_code == 409
    assert response.json()["code"] == "MODEL_MISMATCH"


def test_a_full_gateway_refuses_uploads_at_once(world: World, script: Script) -> None:
    gateway = world.gateway(limits={"max_images_in_work": 1, "max_images_waiting": 1, "max_files": 3})
    files = [("files", (f"{i}.png", scene(("red", (i, 0, i + 5, 5))))) for i in range(3)]
    response = gateway.http.post("/v1/collections/default/images", files=files)
    assert response.status_code == 429
    assert response.json()["code"] == "OVERLOADED"
    assert int(response.headers["retry-after"]) >= 1
    assert gateway.http.post("/v1/collections/default/images", files=files[:2]).status_code == 200
    response = gateway.http.post("/v1/collections/default/images", files=files * 2)
    assert response.status_code == 413
    assert response.json()["code"] == "TOO_LARGE"


def test_two_gateways_work_side_by_side(gateway: Running, collection: str, world: World) -> None:
    """They share services and store; the same images through both are created once."""
    import concurrent.futures

    other = world.gateway(image_store=str(gateway.store))
    images = [(f"{i}.png", scene(("blue", (i, 0, i + 9, 9)))) for i in range(6)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda g: add(g, collection, *images), (gateway, other)))
    outcomes = [sorted(pair) for pair in zip(*[[r["outcome"] for r in one] for one in both], strict=True)]
    assert outcomes == [["created", "duplicate"]] * 6
    assert count(other, collection) == 6
    for name, data in images:
        image_id = hashlib.sha256(data).hexdigest()
        url = f"/v1/collections/{collection}/images/{image_id}/content"
        assert other.http.get(url).content == data, name
