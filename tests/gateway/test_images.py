"""Collections and stored images over HTTP: lists, files, images of regions, deletion."""

from __future__ import annotations

import hashlib
import io

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from regionsearch.errors import Kind, from_rpc_error
from regionsearch.v1 import region_search_pb2
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, scene
from tests.gateway.images import opened, saved, stored


def test_collections_live_and_die(gateway: Running) -> None:
    body = {"name": "short", "crop_policy": "context"}
    response = gateway.http.post("/v1/collections", json=body)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == "/v1/collections/short"
    assert response.json()["model"]["crop_policy"] == "context"
    assert gateway.http.post("/v1/collections", json={"name": "short"}).json()["code"] == "ALREADY_EXISTS"
    names = [c["name"] for c in gateway.http.get("/v1/collections").json()["collections"]]
    assert {"default", "short"} <= set(names)
    assert names == sorted(names)
    first = gateway.http.get("/v1/collections?page_size=1").json()
    second = gateway.http.get(f"/v1/collections?page_size=1&page_token={first['next_page_token']}").json()
    assert [c["name"] for c in first["collections"] + second["collections"]] == names[:2]
    add(gateway, "short", ("a.png", scene(RED)))
    assert list(gateway.store.glob("short/*/*"))
    assert gateway.http.delete("/v1/collections/short").status_code == 204
    assert not list(gateway.store.glob("short/*/*"))
    assert gateway.http.get("/v1/collections/short").status_code == 404


def test_binary_codes_that_the_vectors_cannot_give(gateway: Running) -> None:
    body = {"name": "short", "binary_codes": {"method": "itq", "bits": 8}}
    response = gateway.http.post("/v1/collections", json=body)
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "/binary_codes/bits"


def test_a_collection_has_a_recall_target_of_its_own(gateway: Running) -> None:
    body = {"name": "sure", "recall_target": 0.995}
    assert gateway.http.post("/v1/collections", json=body).json()["recall_target"] == 0.995
    assert gateway.http.get("/v1/collections/sure").json()["recall_target"] == 0.995
    assert gateway.http.get("/v1/collections/default").json()["recall_target"] is None
    response = gateway.http.post("/v1/collections", json=body | {"recall_target": 1.5})
    assert response.json()["errors"][0]["pointer"] == "/recall_target"


@pytest.mark.parametrize("name", ["", "Ünïcode", "a b", "../x", "x" * 65, "-x"])
def test_a_bad_collection_name(gateway: Running, name: str) -> None:
    response = gateway.http.post("/v1/collections", json={"name": name})
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "/name"


def test_images_are_listed_in_pages(gateway: Running, collection: str) -> None:
    for i in range(5):
        stored(gateway, collection, scene(("red", (i, 0, i + 20, 20))), f"{i}.png")
    url, names, token = f"/v1/collections/{collection}/images", [], ""
    while True:
        page = gateway.http.get(url, params={"page_size": 2, "page_token": token}).json()
        names += [image["name"] for image in page["images"]]
        assert page["total_count"] == 5
        token = page["next_page_token"]
        if not token:
            break
    assert names == [f"{i}.png" for i in reversed(range(5))]


def test_what_is_known_about_an_image(gateway: Running, collection: str) -> None:
    data = scene(RED, BLUE, size=(200, 100))
    image = gateway.http.get(stored(gateway, collection, data, "x.png")).json()
    assert image.pop("created_at").endswith("Z")
    assert image == {
        "image_id": hashlib.sha256(data).hexdigest(),
        "name": "x.png",
        "width": 200,
        "height": 100,
        "content_type": "image/png",
        "size_bytes": len(data),
        "tags": [],
        "attributes": {},
        "region_count": 2,
    }


def test_a_sideways_phone_image_is_upright_everywhere(gateway: Running, collection: str) -> None:
    upright = Image.open(io.BytesIO(scene(RED, BLUE, size=(160, 120))))
    exif = Image.Exif()
    exif[274] = 6
    data = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    url = stored(gateway, collection, data)
    image = gateway.http.get(url).json()
    assert (image["width"], image["height"]) == (160, 120)
    assert opened(gateway.http.get(f"{url}/thumbnail?width=80")).size == (80, 60)
    regions = gateway.http.get(f"{url}/regions").json()["regions"]
    red = next(region for region in regions if region["area"] == 1600)
    assert red["box"] == {"x_min": 10, "y_min": 20, "x_max": 50, "y_max": 60}
    crop = opened(gateway.http.get(f"{url}/regions/{red['region_id']}/crop.png"))
    assert crop.size == (40, 40)
    assert (np.asarray(crop) == (255, 0, 0, 255)).all()


def test_masks_and_cut_outs(gateway: Running, collection: str) -> None:
    """An L-shaped region: its box has pixels that are not its own."""
    url = stored(
        gateway,
        collection,
        scene(("red", (10, 10, 30, 60)), ("red", (10, 40, 60, 60)), ("blue", (40, 10, 50, 20))),
    )
    regions = gateway.http.get(f"{url}/regions", params={"include": "mask"}).json()["regions"]
    red = max(regions, key=lambda region: region["area"])
    mask = np.asarray(opened(gateway.http.get(f"{url}/regions/{red['region_id']}/mask.png")))
    assert mask.shape == (120, 160)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() == red["area"] == 20 * 50 + 30 * 20
    crop = np.asarray(opened(gateway.http.get(f"{url}/regions/{red['region_id']}/crop.png")))
    assert crop.shape == (50, 50, 4)
    assert (crop[:, :, 3] == mask[10:60, 10:60]).all()
    assert red["mask"]["size"] == [120, 160]


def test_regions_as_coco(gateway: Running, collection: str) -> None:
    url = stored(gateway, collection, scene(RED, GREEN))
    document = gateway.http.get(f"{url}/regions?format=coco").json()
    assert [annotation["area"] for annotation in document["annotations"]] == [1600, 400]
    assert document["annotations"][0]["bbox"] == [10, 20, 40, 40]
    assert document["images"][0]["width"] == 160
    assert all(annotation["segmentation"]["counts"] for annotation in document["annotations"])


def test_deletion_forgets_records_and_bytes(gateway: Running, collection: str) -> None:
    data = scene(RED, GREEN)
    url = stored(gateway, collection, data)
    regions = gateway.http.get(f"{url}/regions").json()["regions"]
    assert gateway.http.delete(url).status_code == 204
    assert not list(gateway.store.glob(f"{collection}/*/*"))
    for path in ("", "/content", "/thumbnail", "/regions", f"/regions/{regions[0]['region_id']}/mask.png"):
        assert gateway.http.get(url + path).status_code == 404
    assert gateway.http.delete(url).status_code == 404
    answer = gateway.http.post(f"/v1/collections/{collection}/search", json={"query": {"text": "red"}})
    assert answer.json()["hits"] == []
    assert stored(gateway, collection, data) == url


def test_images_of_one_collection_are_not_seen_in_another(gateway: Running, collection: str) -> None:
    data = scene(RED, BLUE, GREEN)
    url = stored(gateway, collection, data)
    other = url.replace(f"/{collection}/", "/default/")
    for path in ("", "/content", "/regions", "/thumbnail"):
        assert gateway.http.get(other + path).status_code == 404
    add(gateway, "default", ("a.png", data))
    assert gateway.http.delete(other).status_code == 204
    assert gateway.http.get(f"{url}/content").content == data


def test_a_deletion_that_meets_a_new_ingest_keeps_the_bytes(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    """The image is sent again just after its record is gone and before its bytes are."""
    from gateway.image_store import ImageStore

    data = scene(RED, BLUE)
    url = stored(gateway, collection, data)
    quarantine = ImageStore.quarantine

    async def meanwhile(self: ImageStore, name: str, image_id: str, seconds: float) -> bool:
        monkeypatch.undo()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
            path = f"/v1/collections/{collection}/images"
            answer = await http.post(path, files=[("files", ("again.png", data))])
            assert answer.json()["results"][0]["outcome"] == "created"
        return await quarantine(self, name, image_id, seconds)

    monkeypatch.setattr(ImageStore, "quarantine", meanwhile)
    assert gateway.http.delete(url).status_code == 204
    assert gateway.http.get(f"{url}/content").content == data


def test_a_damaged_file_is_said_to_be_damaged(gateway: Running, collection: str) -> None:
    url = stored(gateway, collection, scene(RED, GREEN))
    (path,) = gateway.store.glob(f"{collection}/*/*")
    path.write_bytes(b"something else")
    response = gateway.http.get(f"{url}/content")
    assert response.status_code == 500
    assert response.json()["code"] == "DATA_LOSS"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "nowhere"),
        ("DELETE", "nowhere"),
        ("GET", "nowhere/images"),
        ("GET", f"default/images/{'0' * 64}"),
        ("GET", "default/images/..%2f..%2fetc%2fpasswd"),
        ("GET", "default/images/%2e%2e/content"),
        ("GET", "default/images/nothing/content"),
        ("GET", f"default/images/{'0' * 64}/content"),
        ("GET", f"default/images/{'0' * 64}/thumbnail"),
        ("GET", f"default/images/{'0' * 64}/regions"),
        ("GET", f"default/images/{'0' * 64}/regions/nothing/mask.png"),
        ("GET", f"default/images/{'0' * 64}/regions/nothing/crop.png"),
        ("DELETE", f"default/images/{'0' * 64}"),
    ],
)
def test_what_does_not_exist(gateway: Running, method: str, path: str) -> None:
    response = gateway.http.request(method, f"/v1/collections/{path}")
    assert response.status_code == 404
    problem = response.json()
    assert (problem["code"], problem["status"]) == ("NOT_FOUND", 404)
    assert problem["detail"]


def test_list_and_delete_over_grpc(gateway: Running, collection: str) -> None:
    ids = [r["image_id"] for r in add(gateway, collection, ("a", scene(RED)), ("b", scene(BLUE)))]
    request = region_search_pb2.RegionSearchServiceListImagesRequest(collection=collection, page_size=1)
    page = gateway.grpc.ListImages(request)
    assert page.total_count == 2
    request.page_token = page.next_page_token
    both = [*page.images, *gateway.grpc.ListImages(request).images]
    assert {image.image_id for image in both} == set(ids)
    delete = region_search_pb2.DeleteImageRequest(collection=collection, image_id=ids[0])
    assert gateway.grpc.DeleteImage(delete).seq > 0
    with pytest.raises(grpc.RpcError) as caught:
        gateway.grpc.DeleteImage(delete)
    assert from_rpc_error(caught.value).kind is Kind.NOT_FOUND
