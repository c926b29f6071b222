"""Arrays on the wire: `Tensor` messages to and from numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import invalid
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
