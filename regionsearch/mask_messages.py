"""Masks in messages: COCO's run lengths, packed bits, PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from regionsearch.errors import RegionSearchError, invalid, too_large
from regionsearch.images import DEFAULT_LIMITS, encode_image, png
from regionsearch.masks import BoolMask, decode_rle, encode_rle
from regionsearch.v1 import types_pb2


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
