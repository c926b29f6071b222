"""Collections and stored images over HTTP: lists, files, pictures of regions, deletion, caching."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.cache import ByteCache
from tests.gateway.conftest import BLUE, GREEN, RED, Running, World, add, scene
from tests.gateway.fakes import Script


def stored(gateway: Running, collection: str, data: bytes, name: str = "a.png") -> str:
    """The URL of an image that was just added."""
    (result,) = add(gateway, collection, (name, data))
    assert result["outcome"] == "created", result
    return f"/v1/collections/{collection}/images/{result['image_id']}"


def opened(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    image = Image.open(io.BytesIO(response.content))
    image.load()
    return image


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


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


def test_bytes_come_back_with_headers_that_cache_and_defuse(gateway: Running, collection: str) -> None:
    data = scene(RED, file_format="WEBP", lossless=True)
    url = stored(gateway, collection, data)
    response = gateway.http.get(f"{url}/content")
    assert response.content == data
    assert response.headers["content-type"] == "image/webp"
    assert response.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in response.headers["content-security-policy"]
    for path in ("content", "thumbnail", ""):
        first = gateway.http.get(f"{url}/{path}".rstrip("/"))
        again = gateway.http.get(
            f"{url}/{path}".rstrip("/"), headers={"If-None-Match": f'"other", {first.headers["etag"]}'}
        )
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]


def test_json_etags_change_with_what_they_name(gateway: Running, collection: str) -> None:
    url = f"/v1/collections/{collection}/images"
    before = gateway.http.get(url).headers["etag"]
    assert gateway.http.get(url, headers={"If-None-Match": before}).status_code == 304
    stored(gateway, collection, scene(RED))
    assert gateway.http.get(url, headers={"If-None-Match": before}).status_code == 200


def test_a_deletion_may_depend_on_what_was_read(gateway: Running, collection: str) -> None:
    data = scene(RED, BLUE)
    url = stored(gateway, collection, data)
    first = gateway.http.get(url).headers["etag"]
    gateway.http.delete(url)
    assert add(gateway, collection, ("a.png", data), tags=["new"])[0]["outcome"] == "created"
    second = gateway.http.get(url).headers["etag"]
    assert first != second
    for stale in (first, '"made up"', f'{first}, "other"'):
        refused = gateway.http.delete(url, headers={"If-Match": stale})
        assert refused.status_code == refused.json()["status"] == 412
        assert refused.headers["content-type"] == "application/problem+json"
        assert (refused.json()["code"], refused.json()["errors"][0]["pointer"]) == ("ABORTED", "/if-match")
    assert gateway.http.get(f"{url}/content").content == data
    assert gateway.http.delete(url, headers={"If-Match": f"{first}, {second.removeprefix('W/')}"}).is_success
    assert gateway.http.delete(url, headers={"If-Match": "*"}).status_code == 404
    stored(gateway, collection, data)
    assert gateway.http.delete(url, headers={"If-Match": "*"}).status_code == 204


def test_a_thumbnail_is_made_once(gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import render

    made: list[int] = []
    thumbnail = render.thumbnail

    def counted(data: bytes, width: int) -> bytes:
        made.append(width)
        return thumbnail(data, width)

    monkeypatch.setattr(render, "thumbnail", counted)
    data = scene(RED, BLUE, size=(170, 120))
    url = stored(gateway, collection, data)
    first = gateway.http.get(f"{url}/thumbnail?width=100")
    assert gateway.http.get(f"{url}/thumbnail?width=100").content == first.content
    assert made == [100]
    assert gateway.http.get(f"{url}/thumbnail?width=50").content != first.content
    assert made == [100, 50]
    gateway.http.delete(url)
    assert gateway.http.get(f"{url}/thumbnail?width=100").status_code == 404


def test_what_is_kept_in_memory_has_a_bound() -> None:
    cache = ByteCache(10)
    cache.put("a", b"1234")
    cache.put("b", b"5678")
    assert cache.get("a") == b"1234"
    cache.put("c", b"90")
    cache.put("d", b"x")  # over the bound: b was used longest ago
    assert [cache.get(key) for key in "abcd"] == [b"1234", None, b"90", b"x"]
    cache.put("a", b"12345678901")  # too large, and the old value is not the key's any more
    assert [cache.get(key) for key in "acd"] == [None, b"90", b"x"]
    for number in range(100):
        cache.put(number, b"12345")
    assert [key for key in ("c", "d", *range(100)) if cache.get(key)] == [98, 99]
    nothing = ByteCache(0)
    nothing.put("a", b"1")
    assert nothing.get("a") is None


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        ((160, 120), 64, (64, 48)),
        ((120, 160), 64, (48, 64)),
        ((20, 10), 320, (20, 10)),
        ((300, 2), 32, (32, 1)),
    ],
)
def test_thumbnails_fit(
    gateway: Running, collection: str, size: tuple[int, int], width: int, expected: tuple[int, int]
) -> None:
    url = stored(gateway, collection, scene(("red", (0, 0, size[0] // 2, size[1])), size=size))
    thumbnail = opened(gateway.http.get(f"{url}/thumbnail?width={width}"))
    assert thumbnail.format == "WEBP"
    assert thumbnail.size == expected


@pytest.mark.parametrize("width", [0, 15, 4096, "big"])
def test_a_thumbnail_of_no_reasonable_size(gateway: Running, collection: str, width: object) -> None:
    url = stored(gateway, collection, scene(RED))
    response = gateway.http.get(f"{url}/thumbnail?width={width}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "/width"


def test_a_sideways_phone_picture_is_upright_everywhere(gateway: Running, collection: str) -> None:
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
    """The picture is sent again just after its record is gone and before its bytes are."""
    from gateway.image_store import ImageStore

    data = scene(RED, BLUE)
    url = stored(gateway, collection, data)
    delete = ImageStore.delete

    async def meanwhile(self: ImageStore, name: str, image_id: str) -> None:
        monkeypatch.undo()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:
            path = f"/v1/collections/{collection}/images"
            answer = await http.post(path, files=[("files", ("again.png", data))])
            assert answer.json()["results"][0]["outcome"] == "created"
        await delete(self, name, image_id)

    monkeypatch.setattr(ImageStore, "delete", meanwhile)
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


def unusual() -> dict[str, bytes]:
    picture = Image.open(io.BytesIO(scene(RED, BLUE))).convert("RGB")
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    return {
        "one pixel": scene(size=(1, 1)),
        "cmyk": saved(picture.convert("CMYK"), "JPEG"),
        "16 bit": saved(Image.fromarray(grey), "PNG"),
        "palette": saved(picture.quantize(8), "PNG", transparency=0),
        "animation": saved(
            picture, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size, "red")]
        ),
        "bmp": saved(picture, "BMP"),
        "tiff": saved(picture, "TIFF"),
        "wide": scene(RED, size=(2000, 60)),
    }


@pytest.mark.parametrize("kind", unusual().keys())
def test_unusual_pictures_work_everywhere(gateway: Running, collection: str, kind: str) -> None:
    data = unusual()[kind]
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
    url = stored(gateway, collection, data, kind)
    image = gateway.http.get(url).json()
    assert (image["width"], image["height"]) == size
    assert max(opened(gateway.http.get(f"{url}/thumbnail?width=100")).size) == min(100, max(size))
    for region in gateway.http.get(f"{url}/regions").json()["regions"][:2]:
        assert opened(gateway.http.get(f"{url}/regions/{region['region_id']}/crop.png")).mode == "RGBA"


def bomb() -> bytes:
    return saved(Image.new("1", (20_000, 20_000)), "PNG")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "INVALID_ARGUMENT"),
        (b"just some words", "UNSUPPORTED_IMAGE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "UNSUPPORTED_IMAGE"),
        (saved(Image.new("RGB", (300, 300), "red"), "JPEG")[:500], "UNSUPPORTED_IMAGE"),
        (bomb(), "TOO_LARGE"),
    ],
    ids=["empty", "text", "svg", "truncated", "bomb"],
)
def test_what_is_no_picture_changes_nothing(
    gateway: Running, collection: str, script: Script, data: bytes, code: str
) -> None:
    before = gateway.http.get(f"/v1/collections/{collection}").json()
    (result,) = add(gateway, collection, ("broken.jpg", data))
    assert (result["outcome"], result["error"]["code"]) == ("failed", code)
    assert gateway.http.get(f"/v1/collections/{collection}").json() == before
    assert not list(gateway.store.glob(f"{collection}/*/*"))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture's file of some format, with bytes changed, cut out or put in."""
    file_format = draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    data = bytearray(scene(RED, BLUE, size=(64, 48), file_format=file_format))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["change", "cut", "insert", "end"])):
            case "change":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[place : place + draw(st.integers(1, 64))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "end":
                del data[place:]
    return bytes(data)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pictures=st.lists(st.one_of(damaged(), st.binary(max_size=200)), min_size=1, max_size=4))
def test_damaged_uploads_are_taken_or_refused_and_never_break_anything(
    gateway: Running, collection: str, pictures: list[bytes]
) -> None:
    """What is taken can be used: its file, its thumbnail and its cut-outs come back."""
    expected = {"INVALID_ARGUMENT", "UNSUPPORTED_IMAGE", "TOO_LARGE"}
    for result, data in zip(add(gateway, collection, *(("x", p) for p in pictures)), pictures, strict=True):
        if result["outcome"] == "failed":
            assert result["error"]["code"] in expected, result
            continue
        url = f"/v1/collections/{collection}/images/{result['image_id']}"
        assert gateway.http.get(f"{url}/content").content == data
        opened(gateway.http.get(f"{url}/thumbnail?width=16"))
        for region in gateway.http.get(f"{url}/regions").json()["regions"][:1]:
            opened(gateway.http.get(f"{url}/regions/{region['region_id']}/crop.png"))
