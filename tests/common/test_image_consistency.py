"""One truth about an image: its size, its way up, its colours and whether it is whole, in all formats."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import EncodedImage, ImageLimits, colour, decode_image, probe_image
from regionsearch.images.metadata import without_metadata
from tests.hostile.image_files import png_chunk, rle_bomb, save, tiff, with_chunks

HEIC = Path(__file__).parents[1] / "data" / "heic"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 98, "subsampling": 0},
}
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def landscape(width: int = 40, height: int = 20) -> Image.Image:
    """The upper left quarter red, the rest blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    return Image.fromarray(pixels)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = orientation
    return block


def check_one_truth(data: bytes) -> np.ndarray[Any, Any]:
    """Size, pixels and thumbnail agree; returns the pixels."""
    header = probe_image(data)
    pixels = decode_image(data)
    assert pixels.shape == (header.height, header.width, 3)
    with EncodedImage(data) as image:
        small = image.reduced(24)
    scale = min(1.0, 24 / max(header.width, header.height))
    assert small.size == (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
    with EncodedImage(data) as image:
        whole = image.reduced(max(pixels.shape))
    shown = np.asarray(Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole.convert("RGBA")))
    assert np.abs(shown[..., :3].astype(int) - pixels).max() <= 2
    return pixels


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


DISPLAY_P3 = colour.of_code_points(12, 13, grey=False)
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
