import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from regionsearch.errors import RegionSearchError
from regionsearch.tensors import tensor_from_proto, tensor_to_proto
from regionsearch.v1 import types_pb2

floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    elements={"allow_nan": False, "allow_infinity": False},
)


@given(floats)
def test_float32_round_trip(array: np.ndarray) -> None:
    back = tensor_from_proto(tensor_to_proto(array), "vectors")
    assert back.dtype == np.float32
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_half_floats_are_widened() -> None:
    half = np.array([[1.5, -2.0]], np.float16)
    assert tensor_from_proto(tensor_to_proto(half), "v").tolist() == [[1.5, -2.0]]
    brain = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype("<u2")
    proto = types_pb2.Tensor(data=brain.tobytes(), dtype=types_pb2.DATA_TYPE_BFLOAT16, shape=[2])
    assert tensor_from_proto(proto, "v").tolist() == [1.5, -2.0]


def test_big_endian_input_is_converted() -> None:
    assert tensor_from_proto(tensor_to_proto(np.array([1.0, 2.0], ">f4")), "v").tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (types_pb2.Tensor(data=b"", shape=[0]), "v.dtype"),
        (types_pb2.Tensor(data=b"1234", dtype=1, shape=[2]), "v.data"),
        (types_pb2.Tensor(data=b"1234", dtype=1, shape=[1, 1]), "v.shape"),
        (types_pb2.Tensor(data=b"", dtype=1, shape=[-1]), "v.shape"),
        (types_pb2.Tensor(data=np.float32(np.nan).tobytes(), dtype=1, shape=[1]), "v"),
        (types_pb2.Tensor(data=np.float32(np.inf).tobytes(), dtype=1, shape=[1]), "v"),
    ],
)
def test_what_is_not_as_said_is_refused(tensor: types_pb2.Tensor, field: str) -> None:
    with pytest.raises(RegionSearchError) as caught:
        tensor_from_proto(tensor, "v", ndim=1)
    assert caught.value.field == field


@given(
    st.binary(max_size=16),
    st.integers(-1, 6),
    st.lists(st.integers(-2, 5) | st.integers(-(2**63), 2**63 - 1), max_size=70),
)
def test_hostile_tensors_are_read_as_said_or_refused(data: bytes, dtype: int, shape: list[int]) -> None:
    tensor = types_pb2.Tensor(data=data, dtype=dtype, shape=shape)
    with contextlib.suppress(RegionSearchError):
        array = tensor_from_proto(tensor, "v")
        assert list(array.shape) == shape
        assert np.isfinite(array).all()


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 2**62, 0], [1] * 65])
def test_shapes_that_no_array_has_are_refused(shape: list[int]) -> None:
    with pytest.raises(RegionSearchError, match="not an array") as caught:
        tensor_from_proto(types_pb2.Tensor(data=b"" if 0 in shape else b"1234", dtype=1, shape=shape), "v")
    assert caught.value.field == "v.shape"


def test_other_dtypes_are_a_programming_error() -> None:
    with pytest.raises(TypeError):
        tensor_to_proto(np.zeros(3))
