"""Images through all processes: hostile ones are refused in time, and every format shows the same thing."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image, ImageCms

from regionsearch.images import colour
from tests.hostile import image_files as files
from tests.stack import ROOT, Stack

COLLECTION = "hostile-images"


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.http, timeout=120) as client:
        client.post("/v1/collections", json={"name": COLLECTION})
        yield client
        client.delete(f"/v1/collections/{COLLECTION}")


def ingested(http: httpx.Client, *sent: bytes) -> list[dict[str, object]]:
    parts = [("files", (f"{index}.img", data)) for index, data in enumerate(sent)]
    response = http.post(f"/v1/collections/{COLLECTION}/images", files=parts)
    results: list[dict[str, object]] = response.json()["results"]
    return results


def test_hostile_images_are_refused_within_seconds_and_the_others_go_on(http: httpx.Client) -> None:
    bombs = [
        files.scan_bomb(1000, 3000),
        files.strip_bomb(250_000),
        files.shared_strips(),
        files.text_bomb(200_000),
        files.rle_bomb(4 << 20),
    ]
    scene = (ROOT / "examples" / "scenes" / "scene-01.jpg").read_bytes()
    began = time.monotonic()
    *refused, taken = ingested(http, *bombs, scene)
    assert time.monotonic() - began < 60
    assert taken["outcome"] == "created"
    for result in refused:
        assert result["outcome"] == "failed"
        assert "save it again" in str(result["error"])
    for bomb in bombs:
        prompt = {"points": '[{"x": 1, "y": 1}]'}
        response = http.post("/v1/segment", files={"image": ("a", bomb)}, data=prompt)
        assert response.status_code == 413, response.text


def test_a_phones_heic_is_taken_in_shown_and_found(http: httpx.Client) -> None:
    heic = (ROOT / "tests" / "data" / "heic" / "turned.heic").read_bytes()
    scene = (ROOT / "examples" / "scenes" / "scene-01.jpg").read_bytes()
    result, _ = ingested(http, heic, scene)
    assert result["outcome"] == "created", result
    url = f"/v1/collections/{COLLECTION}/images/{result['image_id']}"
    with Image.open(io.BytesIO(http.get(f"{url}/thumbnail").content)) as small:
        assert small.size == (64, 96)
    regions = http.get(f"{url}/regions").json()["regions"]
    for region in regions[:1]:
        assert http.get(f"{url}/regions/{region['region_id']}/crop.png").status_code == 200
    query = {"query": {"image": base64.b64encode(heic).decode()}, "level": "image"}
    best = http.post(f"/v1/collections/{COLLECTION}/search", json=query).json()["hits"][0]
    assert best["image_id"] == result["image_id"]
    assert best["score"] > 0.99
    prompt = {"points": '[{"x": 32, "y": 48}]'}
    assert http.post("/v1/segment", files={"image": ("a.heic", heic)}, data=prompt).json()["results"]


def test_one_scene_in_three_formats_and_two_colour_spaces_scores_alike(http: httpx.Client) -> None:
    scene = Image.open(ROOT / "examples" / "scenes" / "scene-01.jpg").convert("RGB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    p3 = colour.of_code_points(12, 13, grey=False)
    wide = ImageCms.profileToProfile(scene, srgb, ImageCms.ImageCmsProfile(io.BytesIO(p3)))
    assert wide is not None
    variants = [
        files.save(scene, "PNG"),
        files.save(wide, "TIFF", icc_profile=p3),
        files.save(scene, "AVIF", quality=95, subsampling="4:4:4"),
    ]
    scores = []
    for result in ingested(http, *variants):
        assert result["outcome"] == "created", result
        url = f"/v1/collections/{COLLECTION}/images/{result['image_id']}"
        facts = http.get(url).json()
        assert (facts["width"], facts["height"]) == scene.size
        with Image.open(io.BytesIO(http.get(f"{url}/thumbnail?width=180").content)) as small:
            assert small.width * scene.height == pytest.approx(small.height * scene.width, rel=0.02)
        query = {"query": {"text": "pizza"}, "level": "region", "filter": {"image_ids": [result["image_id"]]}}
        found = http.post(f"/v1/collections/{COLLECTION}/search", json=query).json()
        scores.append(found["hits"][0]["score"])
    assert max(scores) - min(scores) < 0.07, scores  # it was .15 while profiles were ignored
