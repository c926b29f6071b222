import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import (
    ImageLimits,
    colour,
    decode_image,
    decoded_bytes,
    encode_image,
    image_from_proto,
    image_id,
    isolated,
    probe_image,
)
from regionsearch.v1 import types_pb2
from tests.common.image_checks import landscape
from tests.hostile.image_files import save


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of kinds that Pillow reads and does not write; `colour` is the number of PNG's colour type."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_decodes_to_the_same_image(file_format: str) -> None:
    options = (
        {"lossless": True} if file_format == "WEBP" else {"quality": 100} if file_format == "JPEG" else {}
    )
    data = save(landscape(), file_format, **options)
    pixels = decode_image(data)
    assert pixels.shape == (20, 40, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[5, 5].astype(int) - (255, 0, 0)).max() < 8
    assert np.abs(pixels[15, 35].astype(int) - (0, 0, 255)).max() < 8
    header = probe_image(data)
    assert (header.width, header.height) == (40, 20)
    assert header.content_type == f"image/{file_format.lower()}"


def test_transparency_is_laid_on_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 1)
    pixels = decode_image(save(palette, "PNG", transparency=0))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert decode_image(save(half, "PNG")).min() == 255


def test_sixteen_bits_are_scaled() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], np.uint16)
    for file_format in ("PNG", "TIFF"):
        assert decode_image(save(Image.fromarray(ramp), file_format))[0, :, 0].tolist() == [0, 1, 128, 255]
    colours = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 65535, 32896, 257, 0, 0, 0))
    assert decode_image(colours).tolist() == [[[255, 128, 1], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("bits", "colour", "row", "nothing"),
    [
        (16, 0, struct.pack(">2H", 7, 32896), struct.pack(">H", 7)),  # grey, one value of it transparent
        (16, 4, struct.pack(">4H", 7, 0, 32896, 65535), None),  # grey and alpha
        (16, 6, struct.pack(">8H", 7, 7, 7, 0, *[32896] * 3, 65535), None),  # RGB and alpha
        (8, 0, bytes([7, 128]), struct.pack(">H", 7)),
        (8, 2, bytes([7, 8, 7, 128, 128, 128]), struct.pack(">3H", 7, 8, 7)),
    ],
)
def test_every_kind_of_transparency_is_laid_on_white(
    bits: int, colour: int, row: bytes, nothing: bytes | None
) -> None:
    chunks = [(b"tRNS", nothing)] if nothing else []
    assert decode_image(png(2, 1, bits, colour, b"\0" + row, *chunks)).tolist() == [[[255] * 3, [128] * 3]]


def test_cmyk_is_converted() -> None:
    cmyk = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(decode_image(cmyk)[0, 0].astype(int) - (255, 0, 0)).max() < 8
    # The same numbers as YCCK (Adobe's marker says so): their YCbCr is the negative of red, green and blue.
    marker = cmyk.index(b"Adobe") + 11
    ycck = decode_image(cmyk[:marker] + b"\2" + cmyk[marker + 1 :])
    assert np.abs(ycck[0, 0].astype(int) - (179, 0, 227)).max() < 8


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green")]
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    data = save(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def test_an_image_of_one_pixel_is_read() -> None:
    assert decode_image(save(Image.new("RGB", (1, 1), "blue"), "PNG")).tolist() == [[[0, 0, 255]]]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Kind.INVALID_ARGUMENT),
        (b"not an image at all", Kind.UNSUPPORTED_IMAGE),
        (save(landscape().resize((400, 200)), "JPEG")[:1200], Kind.UNSUPPORTED_IMAGE),
        (save(landscape().resize((400, 200)), "PNG")[:200], Kind.UNSUPPORTED_IMAGE),
        (save(Image.new("F", (4, 4)), "TIFF"), Kind.UNSUPPORTED_IMAGE),
        (save(Image.new("I", (4, 4)), "TIFF"), Kind.UNSUPPORTED_IMAGE),
        (png(0, 0, 8, 2, b""), Kind.UNSUPPORTED_IMAGE),
        (png(7000, 7000, 8, 2, b""), Kind.UNSUPPORTED_IMAGE),
    ],
    ids=[
        "empty",
        "text",
        "truncated jpeg",
        "truncated png",
        "float tiff",
        "32-bit tiff",
        "no pixels",
        "no data",
    ],
)
def test_a_file_that_is_not_an_image_is_refused_by_name(data: bytes, kind: Kind) -> None:
    with pytest.raises(RegionSearchError) as caught:
        decode_image(data, field="files[3]")
    assert caught.value.kind is kind
    assert caught.value.field == "files[3]"
    assert "files[3]" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        png(8_000, 8_000, 1, 0, b""),
        png(20_000, 20_000, 1, 0, b""),
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        png(70_000, 1, 1, 0, bytes(8751)),  # few pixels, but what resizes it needs memory by its length
        png(1, 70_000, 1, 0, bytes(140_000)),
        b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",  # a frame beyond its screen
    ],
    ids=["over our limit", "over Pillow's", "overflow", "long", "tall", "gif"],
)
def test_bombs_are_refused_before_they_are_decoded(data: bytes) -> None:
    for read in (probe_image, decode_image):
        with pytest.raises(RegionSearchError) as caught:
            read(data)
        assert caught.value.kind is Kind.TOO_LARGE


WHOLE = {
    name: save(landscape(), name, exif=bytes(Image.Exif()))
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(name: str, data: st.DataObject) -> None:
    """Whatever a decoder raises; and who has seen the header knows the size of the image."""
    whole = bytearray(WHOLE[name])
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    limits = ImageLimits(max_pixels=1_000_000)
    with contextlib.suppress(RegionSearchError):
        header = probe_image(damaged, limits)
        pixels = decode_image(damaged, limits)
        assert pixels.shape == (header.height, header.width, 3)
        assert pixels.dtype == np.uint8


def test_a_file_beyond_the_byte_limit_is_refused() -> None:
    with pytest.raises(RegionSearchError) as caught:
        decode_image(save(landscape(), "BMP"), ImageLimits(max_bytes=100))
    assert caught.value.kind is Kind.TOO_LARGE


def test_raw_pixels_are_read_and_checked() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    raw = types_pb2.RawImage(height=2, width=4, rgb=pixels.tobytes())
    assert np.array_equal(image_from_proto(types_pb2.Image(raw=raw)), pixels)
    raw.width = 5
    with pytest.raises(RegionSearchError, match="24 bytes"):
        image_from_proto(types_pb2.Image(raw=raw))
    with pytest.raises(RegionSearchError, match="missing"):
        image_from_proto(types_pb2.Image())


def test_identity_is_the_content() -> None:
    assert image_id(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_pixels_survive_a_png(channels: tuple[int, ...]) -> None:
    pixels = np.full((5, 7, *channels), 200, np.uint8)
    image = Image.open(io.BytesIO(encode_image(pixels)))
    assert np.array_equal(np.asarray(image), pixels)


MEMORY = """
import resource, sys
from regionsearch.images import decode_image

data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(data)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(
    ("kind", "most"),
    [("rotated", 7), ("transparent", 7), ("progressive", 13), ("webp", 19), ("profile", 7)],
)
def test_decoding_takes_the_memory_that_admission_counts_with(kind: str, most: int) -> None:
    side = 3000
    image = Image.new("RGB", (side, side), (90, 160, 30))
    if kind == "rotated":
        exif = Image.Exif()
        exif[274] = 6
        data = save(image, "JPEG", exif=exif)
    elif kind == "progressive":  # all of its coefficients wait in memory
        data = save(image, "JPEG", progressive=True, subsampling=0)
    elif kind == "webp":  # the decoder has canvases of its own
        data = save(image, "WEBP", method=0)
    elif kind == "profile":
        data = save(image, "JPEG", icc_profile=colour.of_code_points(12, 13, grey=False))
    else:
        data = save(Image.new("RGBA", (side, side), (9, 9, 9, 9)), "PNG", compress_level=1)
    process = subprocess.run([sys.executable, "-c", MEMORY], input=data, capture_output=True, check=True)
    process_bytes = isolated.BYTES if kind == "webp" else 0
    assert decoded_bytes(types_pb2.Image(encoded=data)) == most * side * side + process_bytes
    assert int(process.stdout) < (most + 2) * side * side
