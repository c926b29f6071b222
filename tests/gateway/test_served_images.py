"""What the gateway serves of stored images: every format for every browser, and without metadata."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gateway.decoder import ImageDecoder
from gateway.settings import LimitSettings
from regionsearch.errors import Kind, RegionSearchError
from tests.gateway.conftest import RED, Running, World, scene
from tests.gateway.images import opened, saved, stored

HEIC = (Path(__file__).parents[1] / "data" / "heic" / "turned.heic").read_bytes()


def with_position(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    exif.get_ifd(34853)[2] = (48.0, 8.0, 14.0)
    return exif


def test_a_heic_is_stored_and_shown_like_any_image(gateway: Running, collection: str) -> None:
    url = stored(gateway, collection, HEIC, "IMG_0001.HEIC")
    facts = gateway.http.get(url).json()
    assert (facts["width"], facts["height"], facts["content_type"]) == (64, 96, "image/heic")
    content = gateway.http.get(f"{url}/content")
    assert content.content == HEIC
    assert content.headers["content-type"] == "image/heic"
    for shown in ("content?format=webp", "thumbnail?width=640"):
        image = opened(gateway.http.get(f"{url}/{shown}"))
        assert (image.format, image.size) == ("WEBP", (64, 96))
    regions = gateway.http.get(f"{url}/regions?include=mask").json()["regions"]
    assert all(region["mask"]["size"] == [96, 64] for region in regions)


def test_a_rendering_is_upright_and_has_its_own_etag(gateway: Running, collection: str) -> None:
    data = saved(Image.new("RGB", (60, 40), "red"), "TIFF", exif=with_position())
    url = stored(gateway, collection, data)
    response = gateway.http.get(f"{url}/content?format=webp")
    assert response.headers["content-type"] == "image/webp"
    assert opened(response).size == (40, 60)
    assert response.headers["etag"] != gateway.http.get(f"{url}/content").headers["etag"]
    assert gateway.http.get(f"{url}/content?format=gif").status_code == 400


def test_strip_metadata_serves_images_without_it(world: World) -> None:
    careful = world.gateway(strip_metadata=True)
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        image = Image.new("RGB", (60, 40), "red")
        data = saved(image, file_format, exif=with_position())
        sent = Image.open(io.BytesIO(data))
        assert file_format == "TIFF" or sent.getexif().get_ifd(34853)
        url = stored(careful, "default", data, f"position.{file_format}")
        served = opened(careful.http.get(f"{url}/content"))
        assert not served.getexif().get_ifd(34853)
        assert set(served.getexif()) <= {274}
        if file_format == "TIFF":
            assert (served.format, served.size) == ("WEBP", (40, 60))
        else:
            assert served.getexif()[274] == 6
            assert (np.asarray(served) == np.asarray(sent)).all()
        careful.http.delete(url)


async def test_a_caller_who_leaves_holds_memory_until_the_work_has_ended() -> None:
    decoder = ImageDecoder(LimitSettings(max_decoded_bytes=100))
    began, ends = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    running: list[str] = []

    def slow() -> None:
        running.append("slow")
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(ends.wait(), loop).result()
        running.append("ended")

    first = asyncio.create_task(decoder.run(100, slow))
    await began.wait()
    second = asyncio.create_task(decoder.run(100, lambda: running.append("second")))
    first.cancel()
    await asyncio.sleep(0.05)
    assert running == ["slow"]
    ends.set()
    await second
    assert running == ["slow", "ended", "second"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_file_that_is_not_an_image_is_named() -> None:
    decoder = ImageDecoder(LimitSettings())
    with pytest.raises(RegionSearchError) as caught:
        await decoder.decoded(b"text", lambda image: image.decode(), field="files[1]")
    assert caught.value.kind is Kind.UNSUPPORTED_IMAGE
    assert caught.value.field == "files[1]"


def test_what_a_thumbnail_shows_is_what_was_searched(gateway: Running, collection: str) -> None:
    url = stored(gateway, collection, scene(RED, size=(300, 200)))
    small = opened(gateway.http.get(f"{url}/thumbnail?width=100"))
    facts = gateway.http.get(url).json()
    assert small.width * facts["height"] == pytest.approx(small.height * facts["width"], rel=0.02)
