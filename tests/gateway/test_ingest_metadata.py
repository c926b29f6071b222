"""Names, tags and attributes of images: kept, shown, filtered by, refused before the work."""

from __future__ import annotations

import hashlib
import json

import grpc
import pytest
from PIL import Image

from regionsearch.errors import from_rpc_error
from regionsearch.v1 import region_search_pb2, types_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, add, count, scene
from tests.gateway.fakes import Script

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


def test_a_photograph_is_filed_with_its_time_camera_and_place(gateway: Running, collection: str) -> None:
    """What the request says goes first; sent again, an older image gets it, but not what was taken away."""
    exif = Image.Exif()
    exif[0x0110] = "X10"
    exif.get_ifd(0x8769).update({0x9003: "2024:05:01 12:34:56"})
    exif.get_ifd(0x8825).update({1: "N", 2: (59.0, 54.0, 36.0), 3: "E", 4: (10.0, 45.0, 0.0)})
    photo = ("a.jpg", scene(RED, file_format="JPEG", exif=exif))
    (result,) = add(gateway, collection, photo, attributes='{"camera": "mine"}')
    url = f"/v1/collections/{collection}/images"
    facts = {"taken_at": "2024-05-01T12:34:56", "camera": "mine", "place": "59.910000,10.750000"}
    assert gateway.http.get(f"{url}/{result['image_id']}").json()["attributes"] == facts
    tests: list[dict[str, object]] = [
        {"attribute": "taken_at", "time": {"gte": "2024-05-01T00:00:00Z", "lt": "2024-05-02T00:00:00Z"}},
        {"attribute": "place", "near": {"latitude": 59.9, "longitude": 10.7, "radius_m": 5000}},
    ]
    for test in tests:
        wanted = json.dumps({"conditions": [test]})
        assert gateway.http.get(url, params={"filter": wanted}).json()["total_count"] == 1

    def change(attributes: dict[str, str | None]) -> None:
        gateway.http.patch(f"{url}/{result['image_id']}", json={"attributes": attributes}).raise_for_status()

    change({"place": None})
    add(gateway, collection, photo)
    assert "place" not in gateway.http.get(f"{url}/{result['image_id']}").json()["attributes"]
    change(dict.fromkeys(("taken_at", "camera")))
    add(gateway, collection, photo)
    assert gateway.http.get(f"{url}/{result['image_id']}").json()["attributes"] == facts | {"camera": "X10"}


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
