"""Colours of an image are what its profile, its chunks and its depth say, in all formats."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from regionsearch.images import EncodedImage, colour, decode_image
from tests.common.image_checks import DISPLAY_P3, LOSSLESS, check_one_truth, landscape
from tests.hostile.image_files import png_chunk, save, tiff, with_chunks

LINEAR_GREY = colour.of_code_points(12, 8, grey=True)
PROFILES = {"P3": DISPLAY_P3, "linear": colour.of_code_points(9, 8, grey=False)}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("name", PROFILES)
def test_colours_of_a_profile_are_shown_as_they_are_meant(file_format: str, name: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    colours = np.array([[200, 60, 40], [40, 160, 70], [60, 70, 190], [128, 128, 128]], np.uint8)
    meant = Image.fromarray(np.repeat(np.repeat(colours[None], 16, 0), 16, 1))
    other = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES[name]))
    stored = ImageCms.profileToProfile(meant, srgb, other)
    assert stored is not None
    del stored.info["icc_profile"]
    data = save(stored, file_format, icc_profile=PROFILES[name], **LOSSLESS.get(file_format, {}))
    pixels = check_one_truth(data)
    most = 3 if file_format in ("PNG", "TIFF", "WEBP") else 8
    assert np.abs(pixels[8, 8::16].astype(int) - colours).max() <= most
    plain = decode_image(save(stored, file_format, **LOSSLESS.get(file_format, {})))
    assert np.abs(plain.astype(int) - np.asarray(stored)).max() <= 8


def test_srgb_profiles_and_broken_ones_change_nothing() -> None:
    image = landscape().resize((64, 64))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = decode_image(save(image, "PNG"))
    broken = (b"\0" * 200, DISPLAY_P3[:300], b"not a profile", LINEAR_GREY, DISPLAY_P3 + bytes(3 << 20))
    for profile in (srgb, *broken):
        data = save(image, "TIFF", icc_profile=profile)
        assert (decode_image(data) == plain).all()


@pytest.mark.parametrize("with_profile", [True, False])
def test_lab_is_shown_as_it_is_meant(with_profile: bool) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (8, 8), (200, 60, 30)), to_lab)
    assert image is not None
    data = save(image, "TIFF", **({"icc_profile": lab.tobytes()} if with_profile else {}))
    assert np.abs(decode_image(data).astype(int) - (200, 60, 30)).max() <= 2


def cmyk_profile() -> bytes:
    """Of four inks: the first is red, the last black, the others cannot be seen."""
    corners = [
        (0, 128, 128) if black else (138, 209, 198) if first else (255, 128, 128)
        for first, _, _, black in itertools.product((0, 1), repeat=4)
    ]
    curve = bytes(range(256))
    matrix = struct.pack(">9i", *np.eye(3, dtype=int).ravel() * 65536)
    sizes = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    table = sizes + matrix + curve * 4 + bytes(itertools.chain(*corners)) + curve * 3
    body = struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    kinds = (b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp")
    header = struct.pack(">I4sI4s4s4s12s4s", 128 + len(body), b"", 2 << 24, *kinds).ljust(68, b"\0")
    return (header + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)).ljust(128, b"\0") + body


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_is_shown_as_its_profile_means_it_and_without_one_as_usual_inks(file_format: str) -> None:
    def shown(inks: tuple[int, int, int, int], profile: bytes) -> list[int]:
        data = save(Image.new("CMYK", (16, 16), inks), file_format, icc_profile=profile)
        colour: list[int] = check_one_truth(data)[8, 8].tolist()
        return colour

    profile, cyan = cmyk_profile(), (255, 0, 0, 0)
    assert shown(cyan, profile) == [255, 0, 0]
    assert shown((0, 200, 0, 0), profile) == [255, 255, 255]
    assert shown((0, 0, 0, 255), profile) == [0, 0, 0]
    for broken in (b"", profile[:900], DISPLAY_P3, profile[:150] + b"\xff" * 60 + profile[210:]):
        assert shown(cyan, broken) == [0, 255, 255]


def test_profiles_of_grey() -> None:
    for image, expected in (
        (Image.new("L", (4, 4), 128), 188),
        (Image.fromarray(np.full((4, 4), 32896, np.uint16)), 188),
    ):
        pixels = decode_image(save(image, "TIFF", icc_profile=LINEAR_GREY))
        assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        (png_chunk(b"gAMA", struct.pack(">I", 100_000)), 188),
        (png_chunk(b"gAMA", struct.pack(">I", 45_455)), 128),
        (png_chunk(b"gAMA", struct.pack(">I", 100_000)) + png_chunk(b"sRGB", b"\0"), 128),
        (png_chunk(b"gAMA", struct.pack(">I", 0)), 128),
        (png_chunk(b"cICP", bytes([1, 8, 0, 1])), 188),
        (png_chunk(b"cICP", bytes([1, 13, 0, 1])) + png_chunk(b"gAMA", struct.pack(">I", 100_000)), 128),
        (png_chunk(b"gAMA", b"\0\1") + png_chunk(b"cHRM", b"\0"), 128),
        (png_chunk(b"gAMA", struct.pack(">I", 100_000)) + png_chunk(b"cHRM", bytes(32)), 128),
    ],
    ids=["linear", "gamma 2.2", "sRGB wins", "zero", "cICP linear", "cICP wins", "cut off", "no primaries"],
)
def test_colour_chunks_of_a_png(chunks: bytes, shown: int) -> None:
    for image in (Image.new("RGB", (4, 4), (128,) * 3), Image.new("L", (4, 4), 128)):
        pixels = decode_image(with_chunks(save(image, "PNG"), chunks))
        assert np.abs(pixels.astype(int) - shown).max() <= 2


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_what_they_hold(white: int, file_format: str) -> None:
    ramp = np.array([[0, white // 2, white]], np.uint16)
    assert decode_image(save(Image.fromarray(ramp), file_format))[0, :, 0].tolist() == [0, 127, 255]


def deep_colour(pixels: np.ndarray[Any, Any], file_format: str) -> bytes:
    """A file of 16-bit colours, which Pillow does not write."""
    height, width, channels = pixels.shape
    if file_format == "PNG":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
        )
    order, compression = (">", 1) if file_format == "big-endian TIFF" else ("<", 8)
    body = pixels.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if compression == 8 else body
    depths = struct.pack(f"{order}{channels}H", *[16] * channels)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8 + len(body) + len(body) % 2),
        (259, 4, 1, compression), (262, 4, 1, 2), (273, 4, 1, 8), (277, 4, 1, channels), (278, 4, 1, height),
        (279, 4, 1, len(body)),
    ]  # fmt: skip
    entries += [(338, 4, 1, 2)] if channels == 4 else []
    return tiff(entries, body + bytes(len(body) % 2) + depths, order)


@pytest.mark.parametrize("white", [4095, 16383, 65535])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "big-endian TIFF"])
def test_sixteen_bit_colours_are_scaled_to_what_they_hold(white: int, file_format: str) -> None:
    pixels = np.array([[[0, white // 2, white], [white, white, white]]], np.uint16)
    shown = [[0, 127, 255], [255, 255, 255]]
    decoded = decode_image(deep_colour(pixels, file_format))[0]
    assert np.abs(decoded.astype(int) - shown).max() <= 1
    opaque = np.dstack([pixels, np.full((1, 2, 1), 65535, np.uint16)])
    decoded = decode_image(deep_colour(opaque, file_format))[0]
    assert np.abs(decoded.astype(int) - shown).max() <= 1
    with EncodedImage(deep_colour(pixels, file_format)) as image:
        assert image.reduced(2).convert("RGB").getpixel((1, 0)) == (255, 255, 255)


def test_big_endian_and_white_is_zero() -> None:
    ramp = np.array([[0, 1000, 65535]], np.uint16)
    for order in ("<", ">"):
        for photometric, expected in ((1, [0, 4, 255]), (0, [255, 251, 0])):
            body = ramp.astype(f"{order}u2").tobytes() + b"\0\0"
            entries = [
                (256, 4, 1, 3), (257, 4, 1, 1), (258, 4, 1, 16), (259, 4, 1, 1), (262, 4, 1, photometric),
                (273, 4, 1, 8), (277, 4, 1, 1), (278, 4, 1, 1), (279, 4, 1, 6),
            ]  # fmt: skip
            assert decode_image(tiff(entries, body, order))[0, :, 0].tolist() == expected
