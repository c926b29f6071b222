"""What a file would cost its decoder is known, and bounded, before it is decoded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from PIL import Image

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import EncodedImage, background, decode_image, probe_image
from tests.hostile import image_files as files

REFUSED: dict[str, Callable[[], bytes]] = {
    "JPEG with 3,000 scans": lambda: files.scan_bomb(1000, 3000),
    "JPEG with a million segments": lambda: files.segment_bomb(1_000_000),
    "PNG with 200,000 texts": lambda: files.text_bomb(200_000),
    "TIFF with 250,000 strips": lambda: files.strip_bomb(250_000),
    "TIFF with strips that share their bytes": files.shared_strips,
    "TIFF with a tile far larger than the image": files.huge_tile,
    "TIFF with tags that share their bytes": lambda: files.shared_tags(900, 1 << 20),
    "BMP with 4 MB of run lengths": lambda: files.rle_bomb(4 << 20),
    "GIF with 200,000 comments": lambda: files.gif_bomb(200_000),
    "WebP with 200,000 chunks": lambda: files.webp_bomb(200_000),
    "AVIF with two million frames": lambda: files.frames_bomb(2_000_000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_intricate_file_is_refused_before_a_decoder_sees_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = REFUSED[name]()
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("it was opened"))
    began = time.process_time()
    with pytest.raises(RegionSearchError) as caught:
        probe_image(data, field="files[0]")
    assert caught.value.kind is Kind.TOO_LARGE
    assert "files[0]" in caught.value.message
    assert "save it again" in caught.value.message
    assert time.process_time() - began < 0.5


HARMLESS: dict[str, Callable[[], bytes]] = {
    "JPEG with 10 MB of EXIF in pieces": lambda: files.exif_bomb(160),
    "PNG with a text and a profile that unpack to 64 MB": files.unpacking_bomb,
    "TIFF that leads to itself": files.looping_tiff,
    "JPEG with 40 scans more": lambda: files.scan_bomb(64, 40),
    "BMP with 500 kB of run lengths": lambda: files.rle_bomb(501_000, 500),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_pixels_costs_nothing(name: str) -> None:
    data = HARMLESS[name]()
    began = time.process_time()
    decode_image(data)
    assert time.process_time() - began < 2


def test_a_file_is_read_as_one_format_by_every_reader() -> None:
    with EncodedImage(files.polyglot()) as image:
        assert (image.header.width, image.header.height) == (64, 64)
        assert image.header.content_type == "image/tiff"
        assert image.reduced(320).size == (64, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux'")
def test_large_images_are_decoded_at_a_lower_priority_and_small_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    priorities = []

    def load(self: EncodedImage) -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        usual_load(self)

    usual_load = EncodedImage._load
    monkeypatch.setattr(EncodedImage, "_load", load)
    whole = files.save(Image.effect_noise((400, 300), 99), "JPEG")
    expected = decode_image(whole)
    monkeypatch.setattr(background, "PIXELS", 100_000)
    assert (decode_image(whole) == expected).all()
    with pytest.raises(RegionSearchError) as caught:
        decode_image(whole[: len(whole) // 2])
    assert caught.value.kind is Kind.UNSUPPORTED_IMAGE
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    lower = min(19, usual + background.NICENESS)
    assert priorities == [usual, lower, lower]


STORM = """
import sys
from regionsearch.errors import RegionSearchError
from regionsearch.images import decode_image
from regionsearch.images.tiff import silence_libtiff

if sys.argv[1] == "quiet":
    silence_libtiff()
try:
    decode_image(sys.stdin.buffer.read())
except RegionSearchError:
    pass
"""


def test_a_damaged_tiff_fills_no_log() -> None:
    whole = bytearray(
        files.save(Image.effect_noise((400, 400), 99).convert("1"), "TIFF", compression="group4")
    )
    whole[100:4000:7] = b"\x55" * len(whole[100:4000:7])
    lines = {}
    for how in ("loud", "quiet"):
        child = subprocess.run(
            [sys.executable, "-c", STORM, how],
            input=bytes(whole),
            capture_output=True,
            check=True,
            timeout=60,
        )
        lines[how] = len(child.stderr.splitlines())
    assert lines["loud"] > 10
    assert lines["quiet"] == 0


MEMORY = """
import asyncio, io, sys, threading, time
from PIL import Image
from gateway import render
from gateway.decoder import ImageDecoder
from gateway.settings import LimitSettings
from services.runtime.memory import map_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, resident())

async def six(data):
    decoder = ImageDecoder(LimitSettings())
    await asyncio.gather(*(
        decoder.decoded(data, lambda image, w=w: render.thumbnail(image, w), lambda i: i.reduced_bytes(320))
        for w in range(315, 321)
    ))

map_large_blocks()
out = io.BytesIO()
Image.new("RGBA", (7000, 7000), (9, 99, 9, 200)).save(out, "PNG", compress_level=1)
small = io.BytesIO()
Image.new("RGBA", (70, 70)).save(small, "PNG")
asyncio.run(six(small.getvalue()))
peak, done, before = 0, threading.Event(), resident()
watcher = threading.Thread(target=watch)
watcher.start()
asyncio.run(six(out.getvalue()))
done.set()
watcher.join()
print(peak - before, resident() - before)
"""


def test_six_thumbnails_of_49_megapixels_at_once_stay_within_600_mb_and_give_it_back() -> None:
    child = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True, timeout=120)
    peak, left = map(int, child.stdout.split())
    assert peak < 600e6
    assert left < 64e6
