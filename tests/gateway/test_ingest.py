"""Images in: outcomes, order of the writes, idempotency, failures in every stage."""

from __future__ import annotations

import hashlib
import json
import socket

import grpc
import numpy as np
import pytest

from regionsearch.client import EverythingOptions
from regionsearch.errors import Kind, RegionSearchError, from_rpc_error, overloaded
from regionsearch.v1 import region_search_pb2, segment_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, Shape, World, add, scene, wait_for
from tests.gateway.fakes import EMBEDDER, Script


def count(gateway: Running, collection: str) -> int:
    return int(gateway.http.get(f"/v1/collections/{collection}").json()["image_count"])


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


def test_overload_of_a_service_reaches_who_waits_for_one_image(
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


def test_a_client_that_leaves_ends_the_work(
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


SHOWN = [
    ("../../evil.html", "evil.html"),
    ("/etc/passwd", "etc/passwd"),
    ("trip1/IMG_1.jpg", "trip1/IMG_1.jpg"),
    ("trip1/../../x/./IMG_1.jpg", "trip1/x/IMG_1.jpg"),
    ("C:\\Users\\me\\a.jpg", "Users/me/a.jpg"),
    ("\\\\server\\share\\a.jpg", "server/share/a.jpg"),
    ("..", ""),
    ("a\x01b\n\x7f\x85.png", "ab.png"),
    ("gpj.\u202egpj\u2066.exe", "gpj.gpj.exe"),
    ("x" * 5000, "x" * 1000),
    ("héllo 😀.png", "héllo 😀.png"),
    ("S 9.00.00\u202fPM.jpg", "S 9.00.00\u202fPM.jpg"),
    ("写真\u3000一.jpg", "写真\u3000一.jpg"),
    ("می\u200cروم.jpg", "می\u200cروم.jpg"),
    ("family 👨\u200d👩\u200d👧.png", "family 👨\u200d👩\u200d👧.png"),
    ("nb\u00a0sp.png", "nb\u00a0sp.png"),
]


@pytest.mark.parametrize(("name", "shown"), SHOWN, ids=[ascii(shown)[:20] for _, shown in SHOWN])
def test_names_are_kept_as_they_are_and_only_shown(
    gateway: Running, collection: str, name: str, shown: str
) -> None:
    request = region_search_pb2.IngestImageRequest(
        collection=collection, image=types_pb2.Image(encoded=scene(RED)), name=name
    )
    answer = gateway.grpc.IngestImage(request)
    stored = gateway.http.get(f"/v1/collections/{collection}/images/{answer.image_id}").json()["name"]
    assert stored == shown
    (path,) = gateway.store.glob(f"{collection}/*/*")
    assert path.name == answer.image_id


def test_a_quotation_mark_in_the_name_of_an_uploaded_file_is_one(gateway: Running, collection: str) -> None:
    """Browsers, and httpx, write it as %22."""
    assert add(gateway, collection, ('a "good" one.png', scene(RED)))[0]["name"] == 'a "good" one.png'


def test_tags_and_attributes_are_kept_and_filtered_by(gateway: Running, collection: str) -> None:
    said = {"by": "me", "price": "10.00", "taken": "2026-11-29T12:00:00Z"}
    add(gateway, collection, ("a.png", scene(RED)), tags=["holiday", "beach"], attributes=json.dumps(said))
    add(gateway, collection, ("b.png", scene(RED, GREEN)))
    url = f"/v1/collections/{collection}"
    (image,) = [i for i in gateway.http.get(f"{url}/images").json()["images"] if i["tags"]]
    assert (image["tags"], image["attributes"]) == (["holiday", "beach"], said)
    conditions = [
        [{"attribute": "by", "values": ["you", "me"]}],
        [{"attribute": "by", "prefix": "m"}, {"tag": "city", "negate": True}],
        [{"any_of": [{"tag": "city"}, {"attribute": "price", "number": {"gt": 9.5, "lte": 10}}]}],
        [{"attribute": "taken", "time": {"gte": "2026-11-29T00:00:00Z", "lt": "2026-11-30T00:00:00+01:00"}}],
        [{"any_of": [{"attribute": "by", "negate": True}, {"tag": "city"}], "negate": True}],
    ]
    filters = [{"conditions": these} for these in conditions]
    for chosen in ({"tags": ["beach"]}, {"attributes": {"by": "me"}}, *filters):
        body = {"query": {"text": "red"}, "filter": chosen, "group_by": "image"}
        hits = gateway.http.post(f"{url}/search", json=body).json()["hits"]
        assert [hit["image"]["name"] for hit in hits] == ["a.png"]


@pytest.mark.parametrize(
    ("data", "status", "pointer"),
    [
        ({"tags": "x" * 5000}, 413, "/tags"),
        ({"tags": [f"tag {n}" for n in range(51)]}, 413, "/tags"),
        ({"tags": [f"{n}" * 4000 for n in range(5)]}, 413, "/tags"),
        ({"tags": "a\0b"}, 400, "/tags"),
        ({"tags": ""}, 400, "/tags"),
        ({"attributes": json.dumps({"room": "x" * 5000})}, 413, "/attributes"),
        ({"attributes": json.dumps({f"n{n}": "x" for n in range(51)})}, 413, "/attributes"),
        ({"attributes": json.dumps({"a\0b": "x"})}, 400, "/attributes"),
        ({"attributes": '{"room": "\\ud800"}'}, 400, "/attributes/room"),
    ],
    ids=[
        "long tag", "many tags", "many bytes", "NUL in a tag", "empty tag", "long attribute",
        "many attributes", "NUL in a name", "half a character",
    ],
)  # fmt: skip
def test_tags_and_attributes_that_cannot_be_kept_are_refused_before_the_work(
    gateway: Running, collection: str, script: Script, data: dict[str, str], status: int, pointer: str
) -> None:
    image = scene(RED, BLUE, GREEN)
    url = f"/v1/collections/{collection}/images"
    answer = gateway.http.post(url, files=[("files", ("a.png", image))], data=data)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer), answer.text
    assert script.calls["Segment"] == 0
    assert not list(gateway.store.glob(f"{collection}/*/{hashlib.sha256(image).hexdigest()}"))
    request = region_search_pb2.IngestImageRequest(collection=collection, image={"encoded": image})
    if pointer == "/tags":
        request.tags.extend([data["tags"]] if isinstance(data["tags"], str) else data["tags"])
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.IngestImage(request)
        assert from_rpc_error(caught.value).field == "tags"


@pytest.mark.parametrize("attributes", ["[1]", "{", '{"a": 1}', '{"_idempotency_key": "k"}'])
def test_bad_attributes_are_refused(gateway: Running, collection: str, attributes: str) -> None:
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("a.png", scene(RED)))],
        data={"attributes": attributes},
    )
    assert response.status_code == 400 or response.json()["results"][0]["outcome"] == "failed"
    assert count(gateway, collection) == 0


def test_options_of_everything_mode_reach_the_segmenter(
    gateway: Running, collection: str, script: Script
) -> None:
    """Over HTTP as over gRPC; what is kept says `max_regions`, which gRPC has in `selection`."""
    options = {"mode": "proposals", "crop_n_layers": 1, "min_mask_region_area": 30, "max_regions": 2}
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("a.png", scene(RED, BLUE, GREEN)))],
        data={"everything": json.dumps(options)},
    )
    assert response.json()["results"][0]["regions"] == 2
    request = region_search_pb2.IngestImageRequest(
        collection=collection,
        image=types_pb2.Image(encoded=scene(GREEN, RED)),
        everything=EverythingOptions.model_validate(options | {"max_regions": 1}).to_proto(),
    )
    assert gateway.grpc.IngestImage(request).region_count == 1
    asked = [one for one in script.requests if isinstance(one, segment_pb2.SegmentRequest)][-2:]
    for one in asked:
        everything = one.everything
        assert everything.mode == segment_pb2.EVERYTHING_MODE_PROPOSALS
        assert (everything.crop_n_layers, everything.min_mask_region_area) == (1, 30)
        assert not everything.HasField("points_per_side")
    assert [one.everything.selection.max_regions for one in asked] == [2, 1]


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ('{"points_per_side": 0}', "everything/points_per_side"),
        ('{"pred_iou_thresh": 2}', "everything/pred_iou_thresh"),
        ('{"points": 9}', "everything/points"),
        ('{"mode": "dense"}', "everything/mode"),
        ('{"mode": "proposals", "points_per_side": 9}', "everything"),
        ("true", "everything"),
        ("{", "everything"),
    ],
)
def test_options_of_everything_mode_that_cannot_be_are_named(
    gateway: Running, collection: str, sent: str, named: str
) -> None:
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("a.png", scene(RED)))],
        data={"everything": sent},
    )
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"].lstrip("/") == named
    assert count(gateway, collection) == 0


class TestGrpc:
    def test_one_image_with_a_selection(self, gateway: Running, collection: str) -> None:
        request = region_search_pb2.IngestImageRequest(
            collection=collection,
            image=types_pb2.Image(encoded=scene(RED, BLUE, GREEN)),
            everything={"selection": {"max_regions": 2}},
        )
        answer = gateway.grpc.IngestImage(request)
        assert answer.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
        assert answer.region_count == 2
        assert gateway.grpc.IngestImage(request).outcome == region_search_pb2.INGEST_OUTCOME_DUPLICATE

    def test_raw_pixels_are_kept_as_png(self, gateway: Running, collection: str) -> None:
        pixels = np.full((20, 30, 3), 255, np.uint8)
        pixels[5:10, 5:10] = (255, 0, 0)
        raw = types_pb2.RawImage(height=20, width=30, rgb=pixels.tobytes())
        answer = gateway.grpc.IngestImage(
            region_search_pb2.IngestImageRequest(collection=collection, image=types_pb2.Image(raw=raw))
        )
        stored = gateway.http.get(f"/v1/collections/{collection}/images/{answer.image_id}").json()
        assert (stored["width"], stored["height"], stored["content_type"]) == (30, 20, "image/png")

    def test_a_stream_reports_stages_and_survives_a_bad_image(
        self, gateway: Running, collection: str
    ) -> None:
        def item(key: str, data: bytes) -> region_search_pb2.IngestImagesRequest:
            request = region_search_pb2.IngestImageRequest(
                collection=collection, image=types_pb2.Image(encoded=data)
            )
            return region_search_pb2.IngestImagesRequest(key=key, request=request)

        images = {f"{i}": scene(("red", (i, 0, i + 5, 5))) for i in range(30)} | {"bad": b"not an image"}
        answers = list(gateway.grpc.IngestImages(item(key, data) for key, data in images.items()))
        done = {
            answer.key: answer for answer in answers if answer.stage == region_search_pb2.INGEST_STAGE_DONE
        }
        assert done.keys() == images.keys()
        assert done["bad"].WhichOneof("result") == "error"
        assert done["bad"].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert done["7"].response.outcome == region_search_pb2.INGEST_OUTCOME_CREATED
        stages = [answer.stage for answer in answers if answer.key == "7"]
        assert stages == sorted(stages)
        assert len(stages) == 5
        assert count(gateway, collection) == 30

    def test_a_deadline_is_handed_on(
        self, gateway: Running, collection: str, script: Script, world: World
    ) -> None:
        import asyncio

        script.hold["EmbedRegions"] = world.call(asyncio.Event)
        request = region_search_pb2.IngestImageRequest(
            collection=collection, image=types_pb2.Image(encoded=scene(RED))
        )
        for timeout_s in (0.5, 5, 50):
            with pytest.raises(grpc.RpcError) as caught:
                gateway.grpc.IngestImage(request, timeout=timeout_s)
            assert from_rpc_error(caught.value).kind is Kind.DEADLINE_EXCEEDED
            if script.calls["EmbedRegions"]:  # on a busy machine the first ones may end before they get there
                break
        wait_for(lambda: script.cancelled["EmbedRegions"] == script.calls["EmbedRegions"] > 0)
        assert count(gateway, collection) == 0


def test_no_room_is_said_at_once(world: World, script: Script) -> None:
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
