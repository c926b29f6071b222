"""Arrays in messages: tensors, and masks as COCO's run lengths, packed bits or PNG."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionsearch.errors import RegionSearchError, invalid, too_large
from regionsearch.images import DEFAULT_LIMITS, encode_image, png
from regionsearch.masks import BoolMask, RunLengthMask, Size, decode_rle, encode_rle
from regionsearch.v1 import types_pb2

_DTYPES: dict[types_pb2.DataType.ValueType, np.dtype[Any]] = {
    types_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    types_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    types_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
    types_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name != types_pb2.DATA_TYPE_BFLOAT16}


def tensor_to_proto(array: NDArray[Any]) -> types_pb2.Tensor:
    """Packs a float32, float16 or uint8 array.

    Raises:
        TypeError: For any other dtype.
    """
    dtype = _NAMES.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise TypeError(f"a tensor holds float32, float16 or uint8, not {array.dtype}")
    return types_pb2.Tensor(
        data=array.astype(_DTYPES[dtype], copy=False).tobytes(), dtype=dtype, shape=array.shape
    )


def tensor_from_proto(
    tensor: types_pb2.Tensor, field: str, *, ndim: int | None = None, finite: bool = True
) -> NDArray[Any]:
    """Unpacks a message; float types come out as float32, uint8 stays.

    Args:
        tensor: The message.
        field: Its name, for errors.
        ndim: Number of dimensions that it must have.
        finite: Refuse NaN and infinity.

    Returns:
        An array of the message's shape, read-only when it shares the message's bytes.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when dtype, shape, size or values are not as said.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise invalid(f"{field}.dtype", f"{field}.dtype is missing; say FLOAT32, FLOAT16, BFLOAT16 or UINT8")
    shape = tuple(tensor.shape)
    if ndim is not None and len(shape) != ndim:
        raise invalid(f"{field}.shape", f"{field}.shape has {len(shape)} dimensions; {ndim} are needed")
    if any(side < 0 for side in shape):
        raise invalid(f"{field}.shape", f"{field}.shape has a negative side")
    expected = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise invalid(
            f"{field}.data",
            f"{field}.data has {len(tensor.data)} bytes; shape {list(shape)} takes {expected}",
        )
    try:
        array: NDArray[Any] = np.frombuffer(tensor.data, dtype).reshape(shape)
    except ValueError as error:  # without a byte, any sides next to a 0 have the right size
        raise invalid(
            f"{field}.shape", f"{field}.shape {list(shape)[:8]} is not an array's: {error}"
        ) from error
    if tensor.dtype == types_pb2.DATA_TYPE_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise invalid(field, f"{field} holds NaN or infinity; send finite numbers")
    return array


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
    height, width = _mask_size(proto, field, max_pixels)
    match proto.WhichOneof("encoding"):
        case "coco_rle":
            return decode_rle(proto.coco_rle, height, width, f"{field}.coco_rle")
        case "packed_bits":
            return _unpack_bits(proto.packed_bits, height, width, f"{field}.packed_bits")
        case "png":
            return _decode_png(proto.png, height, width, f"{field}.png")
        case _:
            raise invalid(field, f"{field} has no encoding; set coco_rle, packed_bits or png")


def runs_from_proto(
    proto: types_pb2.Mask, field: str = "mask", max_pixels: int = DEFAULT_LIMITS.max_pixels
) -> RunLengthMask:
    """As `mask_from_proto`, but as runs: a run-length string is not decoded to pixels."""
    if proto.WhichOneof("encoding") != "coco_rle":
        return RunLengthMask.from_mask(mask_from_proto(proto, field, max_pixels))
    height, width = _mask_size(proto, field, max_pixels)
    return RunLengthMask.from_coco_rle(proto.coco_rle, height, width, f"{field}.coco_rle")


def _mask_size(proto: types_pb2.Mask, field: str, max_pixels: int) -> Size:
    height, width = proto.height, proto.width
    if height < 1 or width < 1:
        raise invalid(field, f"{field} needs a height and a width of at least 1")
    if height * width > max_pixels:
        raise too_large(
            field,
            f"{field} has {height} x {width} pixels, over the limit of {max_pixels}; send a smaller image "
            "and its mask",
        )
    return height, width


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
