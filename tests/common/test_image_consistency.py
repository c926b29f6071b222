"""One truth about an image: its size, its way up and whether it is whole, in all formats."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import EncodedImage, ImageLimits, decode_image, probe_image
from regionsearch.images.metadata import without_metadata
from tests.common.image_checks import (
    DISPLAY_P3,
    FORMATS,
    LOSSLESS,
    STORED,
    XMP,
    check_one_truth,
    exif,
    landscape,
)
from tests.hostile.image_files import png_chunk, rle_bomb, save, with_chunks

HEIC = Path(__file__).parents[1] / "data" / "heic"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 8),
    st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"]),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_size_pixels_and_thumbnail_agree(
    file_format: str, orientation: int, mode: str, width: int, height: int
) -> None:
    image = landscape(width, height).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    try:
        data = save(image, file_format, exif=exif(orientation))
    except (OSError, ValueError):  # not a mode of the format
        return
    check_one_truth(data)


@pytest.mark.parametrize(
    ("file_format", "orientation"),
    [(name, way) for name in ("JPEG", "PNG", "WEBP", "TIFF") for way in range(1, 9)] + [("AVIF", 5)],
)
def test_a_thumbnail_is_upright_too(file_format: str, orientation: int) -> None:
    stored = landscape().transpose(STORED[orientation]) if orientation in STORED else landscape()
    data = save(stored, file_format, exif=exif(orientation), **LOSSLESS.get(file_format, {}))
    assert check_one_truth(data).shape == (20, 40, 3)
    with EncodedImage(data) as image:
        small = np.asarray(image.reduced(20).convert("RGB"))
    assert small.shape == (10, 20, 3)
    assert small[2, 2, 0] > 150
    assert small[2, 17, 2] > 150
    assert small[8, 2, 2] > 150


def test_a_png_may_tell_its_orientation_behind_its_pixels() -> None:
    stored = save(landscape().transpose(STORED[6]), "PNG")
    told = png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    for late in (False, True):
        pixels = check_one_truth(with_chunks(stored, told, late))
        assert pixels.shape == (20, 40, 3)
        assert pixels[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_xmp_alone_turns_nothing(file_format: str) -> None:
    options: dict[str, Any] = {"xmp": XMP}
    if file_format == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        data = with_chunks(save(landscape(), "PNG"), png_chunk(b"iTXt", text))
    elif file_format == "TIFF":
        data = save(landscape(), "TIFF", tiffinfo={700: XMP})
    else:
        data = save(landscape(), file_format, **options, **LOSSLESS.get(file_format, {}))
    assert b"tiff:Orientation" in data
    assert check_one_truth(data).shape == (20, 40, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_whole_if_its_rows_are(progressive: bool) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize((400, 300))
    data = save(image, "JPEG", progressive=progressive, quality=90)
    whole = decode_image(data)
    for cut in (1, 2):
        assert (decode_image(data[:-cut]) == whole).all()
        check_one_truth(data[:-cut])
    assert (decode_image(data + b"\0\1junk" * 9) == whole).all()
    for cut in (40, 400, len(data) // 2):
        for read in (decode_image, lambda data: EncodedImage(data).reduced(100)):
            with pytest.raises(RegionSearchError) as caught:
                read(data[:-cut])
            assert caught.value.kind is Kind.UNSUPPORTED_IMAGE


def test_a_progressive_jpeg_cut_between_scans_is_shown_as_sharp_as_it_is() -> None:
    """As browsers do it; libjpeg knows of nothing missing."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize((160, 120))
    data = save(image, "JPEG", progressive=True, quality=90)
    whole = decode_image(data).astype(int)
    _, *later = (place for place in range(len(data)) if data.startswith(b"\xff\xda", place))
    errors = []
    for cut in later:
        tables = data.rindex(b"\xff\xc4", 0, cut)  # of the scan that is missing
        for end in (cut, tables):
            assert (check_one_truth(data[:end]) == decode_image(data[:end] + b"\xff\xd9")).all()
        errors.append(np.abs(decode_image(data[:cut]) - whole).mean())
    assert errors[0] > 5 > errors[-1] > 0


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_without_its_end_is_whole_if_its_rows_are(interlaced: bool) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8))
    whole = save(image, "PNG")
    if interlaced:
        whole = adam7(np.asarray(image))
    assert (decode_image(whole) == np.asarray(image)).all()
    for cut in (1, 12, 14, 18):  # of IEND, of the checksum, of zlib's checksum
        assert (decode_image(whole[:-cut]) == np.asarray(image)).all()
    for cut in (60, len(whole) // 2):
        with pytest.raises(RegionSearchError, match="damaged"):
            decode_image(whole[:-cut])


def adam7(pixels: np.ndarray[Any, Any]) -> bytes:
    """An interlaced PNG, which Pillow does not write."""
    height, width = pixels.shape[:2]
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b""
    for left, top, across, down in passes:
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::across])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("name", ["plain", "turned", "transparent", "second_is_primary"])
def test_heic_is_read_like_the_others(name: str) -> None:
    data = (HEIC / f"{name}.heic").read_bytes()
    assert probe_image(data).content_type == "image/heic"
    pixels = check_one_truth(data)
    red, blue = ((0, -1), (0, 0)) if name == "turned" else ((0, 0), (-1, -1))
    assert pixels.shape == ((96, 64, 3) if name == "turned" else (64, 96, 3))
    expected = (255, 255, 255) if name == "transparent" else (255, 0, 0)
    assert np.abs(pixels[red].astype(int) - expected).max() < 8
    assert np.abs(pixels[blue].astype(int) - (0, 0, 255)).max() < 8
    with pytest.raises(RegionSearchError) as caught:
        probe_image(data, ImageLimits(max_pixels=1000))
    assert caught.value.kind is Kind.TOO_LARGE


def test_a_heic_that_holds_more_than_it_announces_is_refused() -> None:
    data = (HEIC / "plain.heic").read_bytes()
    size = data.index(b"ispe") + 8
    small = data[:size] + struct.pack(">II", 16, 16) + data[size + 8 :]
    with pytest.raises(RegionSearchError) as caught:
        decode_image(small)
    assert caught.value.kind is Kind.UNSUPPORTED_IMAGE


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, name: str) -> None:
    with pytest.raises(RegionSearchError, match=rf"files\[0\] is a {name} file.*HEIC") as caught:
        probe_image(start + bytes(100), field="files[0]")
    assert caught.value.kind is Kind.UNSUPPORTED_IMAGE


def test_a_limit_says_whose_it_is() -> None:
    with pytest.raises(
        RegionSearchError, match=r"max_image_pixels of the segmenter; gateway.*raise the three"
    ):
        probe_image(save(landscape(), "PNG"), ImageLimits(max_pixels=10, process="segmenter"))


SMALL = {name: save(landscape(), name) for name in FORMATS if name != "AVIF"} | {
    "TIFF LZW": save(landscape(), "TIFF", compression="tiff_lzw"),
    "PNG 16": save(Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40) * 80), "PNG"),
    "JPEG P3": save(landscape(), "JPEG", icc_profile=DISPLAY_P3, progressive=True),
    "WEBP all": save(landscape(), "WEBP", icc_profile=DISPLAY_P3, exif=exif(6), xmp=XMP),
    "BMP RLE": rle_bomb(100, 8),
}  # fmt: skip
HEADERS_ONLY = {"AVIF": save(landscape(), "AVIF"), "HEIC": (HEIC / "turned.heic").read_bytes()}


def changed(whole: bytes, data: st.DataObject) -> bytes:
    """A file with bytes changed, cut out and put in."""
    file = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(file) - 1))
        match data.draw(st.sampled_from(["set", "cut", "repeat", "end"])):
            case "set":
                file[place] = data.draw(st.sampled_from([0, 1, 127, 128, 254, 255]) | st.integers(0, 255))
            case "cut":
                del file[place : place + data.draw(st.integers(1, 8))]
            case "repeat":
                file[place:place] = file[place : place + 16] * data.draw(st.integers(1, 20))
            case _:
                del file[max(1, place) :]
        if not file:
            break
    return bytes(file)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_a_changed_file_is_an_image_or_a_typed_error(name: str, data: st.DataObject) -> None:
    file = changed(SMALL[name], data)
    limits = ImageLimits(max_pixels=500_000)
    with contextlib.suppress(RegionSearchError):
        header = probe_image(file, limits)
        assert decode_image(file, limits).shape == (header.height, header.width, 3)
        with EncodedImage(file, limits) as image:
            assert max(image.reduced(16).size) <= 16


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(HEADERS_ONLY)), st.data())
def test_a_changed_heic_or_avif_is_opened_or_refused(name: str, data: st.DataObject) -> None:
    with contextlib.suppress(RegionSearchError):
        probe_image(changed(HEADERS_ONLY[name], data), ImageLimits(max_pixels=500_000))


def everything_about(file_format: str) -> bytes:
    """A file with EXIF (a position, orientation 6), XMP, a comment and a profile."""
    block = exif(6)
    block.get_ifd(34853)[2] = (48.0, 8.0, 14.0)
    image = landscape().transpose(STORED[6])
    options: dict[str, Any] = {"exif": block, "icc_profile": DISPLAY_P3, **LOSSLESS.get(file_format, {})}
    if file_format == "PNG":
        data = save(image, "PNG", **options)
        return with_chunks(data, png_chunk(b"tEXt", b"Comment\0secret"), behind_pixels=True) + b"secret"
    if file_format == "JPEG":
        return save(image, "JPEG", comment=b"secret", xmp=XMP + b"secret", **options) + b"secret"
    return save(image, "WEBP", xmp=XMP + b"secret", **options)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_metadata_goes_and_the_image_stays(file_format: str) -> None:
    data = everything_about(file_format)
    stripped = without_metadata(data)
    assert b"secret" in data
    assert b"secret" not in stripped
    assert b"adobe" not in stripped
    assert (decode_image(stripped) == decode_image(data)).all()
    with Image.open(io.BytesIO(stripped)) as image:
        assert dict(image.getexif()) == {274: 6}
        assert image.info["icc_profile"] == DISPLAY_P3
    plain = save(landscape(), file_format)
    assert without_metadata(plain) == plain
