import io

import numpy as np
import pytest
from PIL import Image

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import (
    ImageLimits,
    decode_image,
    encode_image,
    image_from_proto,
    image_id,
    probe_image,
)
from regionsearch.v1 import types_pb2


def save(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def landscape() -> Image.Image:
    """40 x 20, the upper left quarter red, the rest blue."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[:10, :20] = (255, 0, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_decodes_to_the_same_picture(file_format: str) -> None:
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


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = landscape().transpose(undo[orientation]) if orientation in undo else landscape()
    exif = Image.Exif()
    exif[274] = orientation
    data = save(stored, file_format, exif=exif)
    pixels = decode_image(data)
    assert pixels.shape == (20, 40, 3)
    assert pixels[5, 5, 0] > 200
    assert pixels[5, 35, 2] > 200
    assert pixels[15, 5, 2] > 200
    header = probe_image(data)
    assert (header.width, header.height) == (40, 20)


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
    pixels = decode_image(save(Image.fromarray(ramp), "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_is_converted() -> None:
    pixels = decode_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert pixels[0, 0, 0] > 200
    assert pixels[0, 0, 1] < 60


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green")]
    data = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel() -> None:
    assert decode_image(save(Image.new("RGB", (1, 1), "blue"), "PNG")).tolist() == [[[0, 0, 255]]]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Kind.INVALID_ARGUMENT),
        (b"not a picture at all", Kind.UNSUPPORTED_IMAGE),
        (save(landscape().resize((400, 200)), "JPEG")[:1200], Kind.UNSUPPORTED_IMAGE),
        (save(landscape().resize((400, 200)), "PNG")[:200], Kind.UNSUPPORTED_IMAGE),
        (save(Image.new("F", (4, 4)), "TIFF"), Kind.UNSUPPORTED_IMAGE),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "float tiff"],
)
def test_what_is_no_picture_is_refused_by_name(data: bytes, kind: Kind) -> None:
    with pytest.raises(RegionSearchError) as caught:
        decode_image(data, field="files[3]")
    assert caught.value.kind is kind
    assert caught.value.field == "files[3]"
    assert "files[3]" in caught.value.message


@pytest.mark.parametrize("side", [8_000, 20_000])
def test_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    data = save(Image.new("1", (side, side)), "PNG")
    assert len(data) < 1_000_000
    for read in (probe_image, decode_image):
        with pytest.raises(RegionSearchError) as caught:
            read(data)
        assert caught.value.kind is Kind.TOO_LARGE


def test_byte_limit() -> None:
    with pytest.raises(RegionSearchError) as caught:
        decode_image(save(landscape(), "BMP"), ImageLimits(max_bytes=100))
    assert caught.value.kind is Kind.TOO_LARGE


def test_raw_pixels() -> None:
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
def test_png_round_trip(channels: tuple[int, ...]) -> None:
    pixels = np.full((5, 7, *channels), 200, np.uint8)
    image = Image.open(io.BytesIO(encode_image(pixels)))
    assert np.array_equal(np.asarray(image), pixels)
