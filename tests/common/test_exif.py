"""What a photograph states about itself: read of every format, and never more than is wanted."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regionsearch.images import EncodedImage
from regionsearch.images.exif import photo_facts

HEIC = Path(__file__).parents[1] / "data" / "heic"
TIME, PLACE = "2024-05-01T12:34:56+02:00", "59.910000,-10.750000"
FACTS = {
    "taken_at": "2024-05-01T12:34:56+02:00",
    "camera": "Apple iPhone 12",
    "place": "59.910000,-10.750000",
}


def block() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Apple\0", "iPhone 12", 6
    exif.get_ifd(0x8769).update({0x9003: "2024:05:01 12:34:56", 0x9011: "+02:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (59.0, 54.0, 36.0), 3: "W", 4: (10.0, 45.0, 0.0)})
    return exif


def photograph(file_format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(out, file_format, exif=block().tobytes())
    return out.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_time_camera_and_place_are_read_of_every_format(file_format: str) -> None:
    with EncodedImage(photograph(file_format)) as image:
        assert image.facts() == FACTS
        assert (image.header.width, image.header.height) == (48, 64), "upright"


def test_they_are_read_of_an_heic_file() -> None:
    with EncodedImage((HEIC / "photograph.heic").read_bytes()) as image:
        assert image.facts() == FACTS


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_states_it_in_its_own_directory(order: str) -> None:
    """Both byte orders; the first directory's camera, and the time behind a pointer."""
    text = b"2024:05:01 12:34:56\0"
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    first = struct.pack(f"{order}HHHI4sHHIII", 2, 0x0110, 2, 4, b"X10\0", 0x8769, 4, 1, 38, 0)
    details = struct.pack(f"{order}HHHIII", 1, 0x9003, 2, len(text), 56, 0)
    assert photo_facts(head + first + details + text) == {"taken_at": "2024-05-01T12:34:56", "camera": "X10"}


def test_what_is_no_time_or_place_is_left_out() -> None:
    exif = block()
    exif.get_ifd(0x8769).update({0x9003: "0000:00:00 00:00:00", 0x9011: "2"})
    exif.get_ifd(0x8825).update({2: (359.0, 54.0, 36.0)})
    assert photo_facts(exif.tobytes()) == {"camera": "Apple iPhone 12"}


@given(st.data())
def test_a_damaged_block_is_read_as_far_as_it_goes(data: st.DataObject) -> None:
    whole = bytearray(block().tobytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    found = photo_facts(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    assert set(found) <= set(FACTS)
    assert all(value.isprintable() and len(value) < 300 for value in found.values())


def test_values_that_share_one_large_block_take_no_memory() -> None:
    """5,000 entries that each point at the same 60 KB: only the wanted ones are read, and in part."""
    start = 10 + 12 * 5_000
    entries = struct.pack(">HHII", 0x0110, 2, 60_000, start) * 5_000
    data = b"MM\0*" + struct.pack(">IH", 8, 5_000) + entries + b"x" * 60_000
    assert photo_facts(data) == {"camera": "x" * 128}
