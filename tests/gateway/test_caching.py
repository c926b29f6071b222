"""Conditional requests, and thumbnails that are made once."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from gateway.image_records import ImageRecords
from regionsearch.images import EncodedImage
from tests.gateway import fakes
from tests.gateway.conftest import BLUE, RED, Running, add, scene
from tests.gateway.images import opened, stored


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


def test_what_changes_during_a_sweep_is_not_deleted(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for `If-Match` and the deletion somebody deletes the image and adds it again."""
    data = scene(RED, BLUE)
    url = stored(gateway, collection, data)
    etag = gateway.http.get(url).headers["etag"]
    delete_image, others = ImageRecords.delete, ["delete it and add it again"]

    async def late(self: ImageRecords, *arguments: Any) -> int:
        while others:
            others.clear()
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
                assert (await http.delete(url)).is_success
                files = [("files", ("a.png", data))]
                assert (await http.post(url.rpartition("/")[0], files=files)).is_success
        return await delete_image(self, *arguments)

    monkeypatch.setattr(ImageRecords, "delete", late)
    refused = gateway.http.delete(url, headers={"If-Match": etag})
    assert (refused.status_code, refused.json()["code"]) == (412, "ABORTED")
    assert gateway.http.get(f"{url}/content").content == data


def test_a_region_that_has_changed_is_sent_again(
    gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Region ids are numbers within an image: cut anew, the same id may be another thing."""
    data = scene(RED, BLUE)
    url = stored(gateway, collection, data)
    region = gateway.http.get(f"{url}/regions").json()["regions"][0]["region_id"]
    paths = [f"{url}/regions/{region}/{kind}.png" for kind in ("mask", "crop")]
    before = [gateway.http.get(path) for path in paths]
    for path, first in zip(paths, before, strict=True):
        assert first.headers["cache-control"] == "private, no-cache"
        assert gateway.http.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    gateway.http.delete(url)
    masks = fakes.colour_masks
    monkeypatch.setattr(fakes, "colour_masks", lambda pixels: masks(pixels)[::-1])
    stored(gateway, collection, data)
    for path, first in zip(paths, before, strict=True):
        second = gateway.http.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert second.status_code == 200
        assert second.content != first.content


def test_a_thumbnail_is_made_once(gateway: Running, collection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import render

    made: list[int] = []
    thumbnail = render.thumbnail

    def counted(image: EncodedImage, width: int) -> bytes:
        made.append(width)
        return thumbnail(image, width)

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
