"""Unusual images work everywhere; damaged ones and what is not an image change nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from regionsearch.images import probe_image
from tests.gateway.conftest import BLUE, RED, Running, add, scene
from tests.gateway.fakes import Script
from tests.gateway.images import opened, saved, stored

HEIC = Path(__file__).parents[1] / "data" / "heic"


def unusual() -> dict[str, bytes]:
    image = Image.open(io.BytesIO(scene(RED, BLUE))).convert("RGB")
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return {
        "one pixel": scene(size=(1, 1)),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "16 bit": saved(Image.fromarray(grey), "PNG"),
        "palette": saved(image.quantize(8), "PNG", transparency=0),
        "animation": saved(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size, "red")]),
        "bmp": saved(image, "BMP"),
        "tiff": saved(image, "TIFF"),
        "wide": scene(RED, size=(2000, 60)),
        "avif": saved(image, "AVIF"),
        "heic": (HEIC / "turned.heic").read_bytes(),
    }


@pytest.mark.parametrize("kind", unusual().keys())
def test_unusual_images_work_everywhere(gateway: Running, collection: str, kind: str) -> None:
    data = unusual()[kind]
    header = probe_image(data)
    size = (header.width, header.height)
    url = stored(gateway, collection, data, kind)
    image = gateway.http.get(url).json()
    assert (image["width"], image["height"], image["content_type"]) == (*size, header.content_type)
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
def test_a_file_that_is_not_an_image_changes_nothing(
    gateway: Running, collection: str, script: Script, data: bytes, code: str
) -> None:
    before = gateway.http.get(f"/v1/collections/{collection}").json()
    (result,) = add(gateway, collection, ("broken.jpg", data))
    assert (result["outcome"], result["error"]["code"]) == ("failed", code)
    assert gateway.http.get(f"/v1/collections/{collection}").json() == before
    assert not list(gateway.store.glob(f"{collection}/*/*"))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image's file of some format, with bytes changed, cut out or put in."""
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
@given(images=st.lists(st.one_of(damaged(), st.binary(max_size=200)), min_size=1, max_size=4))
def test_damaged_uploads_are_taken_or_refused_and_never_break_anything(
    gateway: Running, collection: str, images: list[bytes]
) -> None:
    """What is taken can be used: its file, its thumbnail and its cut-outs come back."""
    expected = {"INVALID_ARGUMENT", "UNSUPPORTED_IMAGE", "TOO_LARGE"}
    for result, data in zip(add(gateway, collection, *(("x", p) for p in images)), images, strict=True):
        if result["outcome"] == "failed":
            assert result["error"]["code"] in expected, result
            continue
        url = f"/v1/collections/{collection}/images/{result['image_id']}"
        assert gateway.http.get(f"{url}/content").content == data
        opened(gateway.http.get(f"{url}/thumbnail?width=16"))
        for region in gateway.http.get(f"{url}/regions").json()["regions"][:1]:
            opened(gateway.http.get(f"{url}/regions/{region['region_id']}/crop.png"))
