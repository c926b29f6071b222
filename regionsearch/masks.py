"""Masks and their encodings.

In memory a mask is a bool array (height, width). On the wire and on disk it is COCO's compressed run-length
string, packed bits or a PNG.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from regionsearch.errors import RegionSearchError, invalid, too_large
from regionsearch.images import DEFAULT_LIMITS, encode_image, png
from regionsearch.v1 import types_pb2

BoolMask = NDArray[np.bool_]

MAX_RLE_CHARS = 4 << 20  # of one mask; reading them takes some forty times as many bytes


def encode_rle(mask: BoolMask) -> str:
    """COCO's compressed run-length string ("counts") of a mask (height, width)."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def check_rle_length(counts: str, field: str) -> None:
    """Refuses run lengths that nobody would be able to read again.

    Raises:
        RegionSearchError: TOO_LARGE over `MAX_RLE_CHARS`.
    """
    if len(counts) > MAX_RLE_CHARS:
        raise too_large(
            field,
            f"{field} has run lengths of {len(counts)} characters, over the limit of {MAX_RLE_CHARS}; masks "
            "of objects have far fewer",
        )


def rle_runs(counts: str, height: int, width: int, field: str = "mask.coco_rle") -> NDArray[np.int64]:
    """The run lengths of a compressed string: column by column, beginning with zeros.

    The format is that of pycocotools' `rleFrString`: 5 bits a character, the sixth says that more follow, the
    fifth of the last one is the sign, and from the fourth run on the value is the difference to the run
    before the last. Parsed here because the library trusts the string with its memory.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the string is malformed or does not cover height x width,
            TOO_LARGE over `MAX_RLE_CHARS`.
    """
    check_rle_length(counts, field)
    chars = np.frombuffer(counts.encode(errors="surrogatepass"), np.uint8) - 48  # what is less wraps around
    if chars.size == 0 or chars.max() > 63 or chars[-1] & 32:
        raise invalid(field, f"{field} is not a COCO run-length string; send what pycocotools calls counts")
    ends = np.flatnonzero((chars & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = (ends - starts + 1).clip(max=8).astype(np.int8)
    if lengths.max() > 7:  # 35 bits: no run of an image is longer
        raise invalid(field, f"{field} holds a run longer than any image; send what pycocotools calls counts")
    values = np.where(chars[ends] & 16, -(np.int64(1) << (5 * lengths.astype(np.int64))), 0)
    for place in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        values[longer] += (chars[starts[longer] + place] & np.int64(31)) << (5 * place)
    del chars, ends, starts, lengths
    np.cumsum(values[1::2], out=values[1::2])
    np.cumsum(values[2::2], out=values[2::2])
    # Each run for itself first: a sum of hostile ones can wrap around to the right number, and NumPy would
    # write past the end of the mask.
    if values.min() < 0 or values.max() > height * width or int(values.sum()) != height * width:
        raise invalid(
            field,
            f"{field} has runs that do not add up to the {height * width} pixels of a mask of "
            f"{height} x {width}; encode the mask at the size of its image",
        )
    return values


def mask_runs(mask: BoolMask) -> NDArray[np.int64]:
    """The run lengths of a mask (height, width), as :func:`rle_runs` gives those of a string."""
    flat = np.ravel(mask, order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0] if flat[0] else [], [0], changes, [flat.size])).astype(np.int64)
    return np.diff(edges)


def decode_rle(counts: str, height: int, width: int, field: str = "mask.coco_rle") -> BoolMask:
    """The mask (height, width) of a compressed run-length string.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the string is malformed or of another size.
    """
    runs = rle_runs(counts, height, width, field)
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def rle_area(counts: str, height: int, width: int) -> int:
    """Number of pixels in the mask, without decoding it."""
    return int(rle_runs(counts, height, width)[1::2].sum())


def mask_box(mask: BoolMask) -> tuple[float, float, float, float] | None:
    """The smallest half-open box (x_min, y_min, x_max, y_max) around a mask; None when the mask is empty."""
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def mask_to_proto(
    mask: BoolMask, encoding: types_pb2.MaskEncoding.ValueType = types_pb2.MASK_ENCODING_COCO_RLE
) -> types_pb2.Mask:
    """Encodes a mask (height, width) as a message."""
    proto = types_pb2.Mask(height=mask.shape[0], width=mask.shape[1])
    if encoding == types_pb2.MASK_ENCODING_PACKED_BITS:
        proto.packed_bits = np.packbits(mask).tobytes()
    elif encoding == types_pb2.MASK_ENCODING_PNG:
        proto.png = encode_image(mask.astype(np.uint8) * 255)
    else:
        proto.coco_rle = encode_rle(mask)
    return proto


def mask_from_proto(
    proto: types_pb2.Mask, field: str = "mask", max_pixels: int = DEFAULT_LIMITS.max_pixels
) -> BoolMask:
    """Decodes a mask message into a bool array (height, width).

    Raises:
        RegionSearchError: INVALID_ARGUMENT when size or encoding is missing or they do not fit each
            other, TOO_LARGE over `max_pixels`.
    """
    height, width = proto.height, proto.width
    if height < 1 or width < 1:
        raise invalid(field, f"{field} needs a height and a width of at least 1")
    if height * width > max_pixels:
        raise too_large(
            field,
            f"{field} has {height} x {width} pixels, over the limit of {max_pixels}; send a smaller image "
            "and its mask",
        )
    match proto.WhichOneof("encoding"):
        case "coco_rle":
            return decode_rle(proto.coco_rle, height, width, f"{field}.coco_rle")
        case "packed_bits":
            return _unpack_bits(proto.packed_bits, height, width, f"{field}.packed_bits")
        case "png":
            return _decode_png(proto.png, height, width, f"{field}.png")
        case _:
            raise invalid(field, f"{field} has no encoding; set coco_rle, packed_bits or png")


def _unpack_bits(data: bytes, height: int, width: int, field: str) -> BoolMask:
    expected = -(-height * width // 8)
    if len(data) != expected:
        raise invalid(field, f"{field} has {len(data)} bytes; {height} x {width} bits take {expected}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=height * width)
    return bits.reshape(height, width).astype(np.bool_)


def _decode_png(data: bytes, height: int, width: int, field: str) -> BoolMask:
    if not data.startswith(png.SIGNATURE):
        raise invalid(field, f"{field} is not a PNG file")
    try:
        pixels = png.take_apart(data).joined()  # without text, of which a decoder may read any amount
        with Image.open(io.BytesIO(pixels), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise invalid(
                    field, f"{field} is {image.height} x {image.width}; the mask says {height} x {width}"
                )
            if len(image.getbands()) > 1:
                raise invalid(field, f"{field} has {len(image.getbands())} channels; send one, 0 outside")
            return np.asarray(image).astype(np.bool_)
    except (RegionSearchError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders let any exception of a damaged file through
        raise invalid(field, f"{field} is not a readable PNG ({error})") from error
