"""Names, tags and attributes of stored images can be changed, over HTTP and gRPC alike."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest

from gateway.image_store import ImageStore
from regionsearch.errors import from_rpc_error
from regionsearch.idempotency import IDEMPOTENCY_KEY
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import search_pb2
from tests.gateway.conftest import BLUE, RED, Running, add, scene


@pytest.fixture
def image(gateway: Running, collection: str) -> str:
    """The address of a stored image with a tag, an attribute and a hidden idempotency key."""
    response = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("red.png", scene(RED)))],
        data={"tags": ["a", "b"], "attributes": '{"place": "Oslo"}'},
        headers={"Idempotency-Key": "k1"},
    )
    return f"/v1/collections/{collection}/images/{response.json()['results'][0]['image_id']}"


def found_by_tag(gateway: Running, collection: str, tag: str) -> int:
    body = {"query": {"text": "red"}, "filter": {"tags": [tag]}, "level": "both"}
    return len(gateway.http.post(f"/v1/collections/{collection}/search", json=body).json()["hits"])


def test_patch_changes_what_it_names_and_keeps_the_rest(
    gateway: Running, collection: str, image: str
) -> None:
    before = gateway.http.get(image).json()
    regions = gateway.http.get(f"{image}/regions?include=mask").json()["regions"]
    assert found_by_tag(gateway, collection, "c") == 0
    answer = gateway.http.patch(
        image,
        json={"add_tags": ["c", "a"], "remove_tags": ["b"], "attributes": {"who": "Ida", "place": None}},
    )
    assert answer.status_code == 200, answer.text
    changed = answer.json()
    assert changed.pop("seq") > 0
    assert changed == before | {"tags": ["a", "c"], "attributes": {"who": "Ida"}}
    shown = gateway.http.get(image)
    assert shown.json() == changed
    assert answer.headers["etag"] == shown.headers["etag"]
    assert gateway.http.get(f"{image}/regions?include=mask").json()["regions"] == regions
    assert found_by_tag(gateway, collection, "c") == 2  # the image and its region
    assert found_by_tag(gateway, collection, "b") == 0
    merged = gateway.http.patch(
        image,
        json={"name": "r\u202ed\n.png", "tags": []},
        headers={"Content-Type": "application/merge-patch+json"},
    ).json()
    assert (merged["name"], merged["tags"], merged["attributes"]) == ("rd.png", [], {"who": "Ida"})
    assert gateway.http.patch(image, json={"name": None, "tags": None}).json()["name"] == ""
    # The hidden key is still there: a repetition of the first request is answered like the first time.
    again = gateway.http.post(
        f"/v1/collections/{collection}/images",
        files=[("files", ("red.png", scene(RED)))],
        headers={"Idempotency-Key": "k1"},
    ).json()["results"][0]
    assert again["outcome"] == "created"


def test_if_match_lets_one_of_two_changes_through(gateway: Running, image: str) -> None:
    etag = gateway.http.get(image).headers["etag"]
    first = gateway.http.patch(image, json={"name": "first"}, headers={"If-Match": etag})
    second = gateway.http.patch(image, json={"name": "second"}, headers={"If-Match": etag})
    assert (first.status_code, second.status_code) == (200, 412)
    assert second.json()["code"] == "ABORTED"
    assert gateway.http.get(image).json()["name"] == "first"
    third = gateway.http.patch(image, json={"name": "third"}, headers={"If-Match": first.headers["etag"]})
    assert third.status_code == 200
    assert gateway.http.delete(image, headers={"If-Match": etag}).status_code == 412


def test_if_match_sees_a_change_that_comes_just_before_the_deletion(
    gateway: Running, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = gateway.http.get(image).headers["etag"]
    check_writable = ImageStore.check_writable

    async def meanwhile(self: ImageStore, collection: str, image_id: str | None = None) -> None:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
            assert (await http.patch(image, json={"add_tags": ["late"]})).status_code == 200
        await check_writable(self, collection, image_id)

    monkeypatch.setattr(ImageStore, "check_writable", meanwhile)
    assert gateway.http.delete(image, headers={"If-Match": etag}).status_code == 412
    monkeypatch.undo()
    assert gateway.http.get(image).json()["tags"] == ["a", "b", "late"]
    etag = gateway.http.get(image).headers["etag"]
    assert gateway.http.delete(image, headers={"If-Match": etag}).status_code == 204


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"tags": [f"t{n}" for n in range(51)]}, 413, "/tags"),
    ({"add_tags": ["x" * 4097]}, 400, "/add_tags/0"),
    ({"add_tags": ["é" * 4000]}, 413, "/tags"),
    ({"add_tags": [""]}, 400, "/tags"),
    ({"add_tags": ["a\0b"]}, 400, "/tags"),
    ({"attributes": {f"n{n}": "v" for n in range(51)}}, 413, "/attributes"),
    ({"attributes": {f"n{n}": "v" * 4000 for n in range(5)}}, 413, "/attributes"),
    ({"attributes": {"n": 5}}, 400, "/attributes/n"),
    ({"attributes": {IDEMPOTENCY_KEY: "k"}}, 400, "/attributes"),
    ({"attributes": {IDEMPOTENCY_KEY: None}}, 400, "/attributes"),
    ({"width": 5}, 400, "/width"),
]


@pytest.mark.parametrize(("body", "status", "pointer"), BAD)
def test_what_cannot_be_kept_changes_nothing(
    gateway: Running, image: str, body: dict[str, Any], status: int, pointer: str
) -> None:
    before = gateway.http.get(image).json()
    answer = gateway.http.patch(image, json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer), answer.text
    assert gateway.http.get(image).json() == before


def test_half_a_character_is_refused(gateway: Running, image: str) -> None:
    for body in ('{"add_tags": ["\\ud800"]}', '{"name": "\\ud800"}', '{"attributes": {"\\ud800": "x"}}'):
        answer = gateway.http.patch(image, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text


def test_tags_stop_growing_at_the_searchers_limit(gateway: Running, image: str) -> None:
    for part in range(2):
        answer = gateway.http.patch(image, json={"add_tags": [f"{part}-{n}" for n in range(40)]})
    assert answer.status_code == 413
    assert "max_tags" in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "/tags"
    assert len(gateway.http.get(image).json()["tags"]) == 42


def test_an_unknown_image_is_not_found(gateway: Running, collection: str) -> None:
    address = f"/v1/collections/{collection}/images/{'0' * 64}"
    assert gateway.http.patch(address, json={"name": "n"}).status_code == 404
    assert gateway.http.patch(address.replace(collection, "none"), json={"name": "n"}).status_code == 404


def test_images_are_updated_over_grpc_too(gateway: Running, collection: str) -> None:
    (made, other) = add(gateway, collection, ("r.png", scene(RED)), ("b.png", scene(BLUE)), tags=["a"])
    request = pb.UpdateImageRequest(collection=collection)
    request.update.image_id = made["image_id"]
    request.update.tags.values.append("new")
    request.update.set_attributes["k"] = "v"
    (read,) = (
        i
        for i in gateway.grpc.ListImages(
            pb.RegionSearchServiceListImagesRequest(collection=collection)
        ).images
        if i.image_id == made["image_id"]
    )
    request.update.as_read.CopyFrom(read)
    answer = gateway.grpc.UpdateImage(request)
    assert (list(answer.image.tags), dict(answer.image.attributes)) == (["new"], {"k": "v"})
    assert answer.seq > other["seq"]

    def refusal(request: pb.UpdateImageRequest) -> tuple[str, str | None]:
        with pytest.raises(grpc.RpcError) as caught:
            gateway.grpc.UpdateImage(request)
        error = from_rpc_error(caught.value)
        return error.kind.value, error.field

    request.update.set_attributes["k"] = "w"
    assert refusal(request)[0] == "ABORTED"
    request.update.ClearField("as_read")
    request.update.set_attributes[IDEMPOTENCY_KEY] = "x"
    assert refusal(request) == ("INVALID_ARGUMENT", "attributes")
    assert refusal(pb.UpdateImageRequest(collection=collection)) == ("INVALID_ARGUMENT", "update.image_id")
    unknown = pb.UpdateImageRequest(
        collection=collection, update=search_pb2.ImageUpdate(image_id="x", name="n")
    )
    assert refusal(unknown) == ("NOT_FOUND", "image_id")


def test_a_read_key_changes_nothing(gateway: Running, collection: str, image: str) -> None:
    locked = gateway.world.gateway(api_keys=["read:r", "write:w"])
    assert locked.http.patch(image, json={"name": "n"}).status_code == 401
    for key, status in (("read:r", 403), ("write:w", 200)):
        headers = {"X-API-Key": key}
        assert locked.http.patch(image, json={"name": "n"}, headers=headers).status_code == status
    update = pb.UpdateImageRequest(collection=collection)
    update.update.image_id = image[-64:]
    with pytest.raises(grpc.RpcError) as caught:
        locked.grpc.UpdateImage(update, metadata=[("x-api-key", "read:r")])
    assert from_rpc_error(caught.value).kind.value == "PERMISSION_DENIED"
