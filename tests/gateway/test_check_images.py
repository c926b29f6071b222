"""Which images need not be sent: asked by the SHA-256 of their files, over HTTP and gRPC."""

from __future__ import annotations

import hashlib

import grpc
import pytest

from regionsearch.errors import from_rpc_error
from regionsearch.v1 import region_search_pb2 as pb
from tests.gateway.conftest import GREEN, RED, Running, scene
from tests.gateway.images import add, stored


def check(gateway: Running, collection: str, ids: list[str]) -> list[str]:
    response = gateway.http.post(f"/v1/collections/{collection}/images:check", json={"image_ids": ids})
    assert response.status_code == 200, response.text
    answer = gateway.grpc.CheckImages(pb.CheckImagesRequest(collection=collection, image_ids=ids))
    found = [image["image_id"] for image in response.json()["images"]]
    assert [image.image_id for image in answer.images] == found
    return found


def test_what_is_stored_is_found_by_its_hash(gateway: Running, collection: str) -> None:
    data, other = scene(RED), scene(GREEN)
    red, green = (hashlib.sha256(one).hexdigest() for one in (data, other))
    assert check(gateway, collection, [red, green]) == []
    stored(gateway, collection, data, "red.png")
    assert check(gateway, collection, [green, red, red]) == [red]
    assert check(gateway, collection, ["0" * 64]) == []
    response = gateway.http.post(f"/v1/collections/{collection}/images:check", json={"image_ids": [red]})
    assert response.json()["images"][0]["name"] == "red.png"
    many = [f"{number:064x}" for number in range(999)]
    assert check(gateway, collection, [*many, red]) == [red]


def test_an_image_whose_file_was_lost_has_to_be_sent(gateway: Running, collection: str) -> None:
    image_id = stored(gateway, collection, scene(RED), "red.png").rpartition("/")[2]
    (file,) = gateway.store.glob(f"{collection}/*/{image_id}")
    file.unlink()
    assert check(gateway, collection, [image_id]) == []


def test_an_image_whose_file_was_found_damaged_has_to_be_sent_which_heals_it(
    gateway: Running, collection: str
) -> None:
    data = scene(RED)
    url = stored(gateway, collection, data, "red.png")
    image_id = url.rpartition("/")[2]
    (file,) = gateway.store.glob(f"{collection}/*/{image_id}")
    file.write_bytes(data[:-1] + b"!")
    assert gateway.http.get(f"{url}/content").json()["code"] == "DATA_LOSS"
    assert check(gateway, collection, [image_id]) == []
    assert add(gateway, collection, ("red.png", data))[0]["outcome"] == "duplicate"
    assert check(gateway, collection, [image_id]) == [image_id]
    file.write_bytes(b"")
    assert check(gateway, collection, [image_id]) == []


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        (["short"], "image_ids[0]"),
        (["0" * 64, "G" * 64], "image_ids[1]"),
        (["0" * 64, "0" * 64 + "\n"], "image_ids[1]"),
        (["0" * 64] * 1001, "image_ids"),
    ],
)
def test_what_is_not_a_list_of_ids(gateway: Running, collection: str, ids: list[str], field: str) -> None:
    response = gateway.http.post(f"/v1/collections/{collection}/images:check", json={"image_ids": ids})
    assert response.status_code == 400
    pointer = "/" + field.replace("[", "/").rstrip("]")
    assert response.json()["errors"][0]["pointer"] == pointer
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.CheckImages(pb.CheckImagesRequest(collection=collection, image_ids=ids))
    assert from_rpc_error(caught.value).field == field


def test_nothing_is_known_of_a_collection_that_does_not_exist(gateway: Running) -> None:
    response = gateway.http.post("/v1/collections/nowhere/images:check", json={"image_ids": ["0" * 64]})
    assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")
