import contextlib
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import encode_image, png
from regionsearch.masks import MAX_RLE_CHARS, decode_rle, encode_rle, mask_box, rle_runs
from regionsearch.tensors import mask_from_proto, mask_to_proto
from regionsearch.v1 import types_pb2

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70))


@given(masks)
def test_rle_round_trip_and_agreement_with_pycocotools(mask: np.ndarray) -> None:
    counts = encode_rle(mask)
    height, width = mask.shape
    assert np.array_equal(decode_rle(counts, height, width), mask)
    theirs = coco.decode({"size": [height, width], "counts": counts.encode()})
    assert np.array_equal(theirs.astype(bool), mask)


def test_run_lengths_of_large_masks_survive() -> None:
    mask = np.zeros((3000, 2000), np.bool_)
    mask[1500:, 1000:] = True
    assert np.array_equal(decode_rle(encode_rle(mask), 3000, 2000), mask)


@given(st.text(max_size=40), st.integers(1, 50), st.integers(1, 50))
def test_hostile_strings_never_decode_to_another_size(counts: str, height: int, width: int) -> None:
    with contextlib.suppress(RegionSearchError):
        assert decode_rle(counts, height, width).shape == (height, width)


def compress(runs: list[int]) -> str:
    """COCO's compressed string of any runs, also of those that no mask has."""
    chars = []
    for index, run in enumerate(runs):
        value = run - (runs[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            chars.append(chr(48 + bits + 32 * more))
    return "".join(chars)


def test_runs_whose_sum_wraps_around_are_refused() -> None:
    """65,536 pixels in 64 bits: NumPy would write 2**64 of them into a buffer of 65,536."""
    step, rises = 1 << 32, 1 << 16
    runs = [1 << 16, 0, 0, *(step * (number // 2 + 1) for number in range(2 * rises - 1))]
    counts = compress(runs)
    assert sum(runs) % (1 << 64) == 1 << 16
    with pytest.raises(RegionSearchError, match="add up"):
        decode_rle(counts, 256, 256)


@given(masks, st.data())
def test_any_runs_but_those_of_a_mask_of_that_size_are_refused(mask: np.ndarray, data: st.DataObject) -> None:
    height, width = mask.shape
    runs = rle_runs(encode_rle(mask), height, width).tolist()
    assert compress(runs) == encode_rle(mask)
    place = data.draw(st.integers(0, len(runs) - 1))
    runs[place] += data.draw(st.integers(-(1 << 30), 1 << 30).filter(bool))
    with pytest.raises(RegionSearchError):
        rle_runs(compress(runs), height, width)


@pytest.mark.parametrize("counts", ["é", "4\N{BULLET}", "\ud800", "?\N{SNOWMAN}", "/", "~", "P"])
def test_other_characters_are_not_read_as_numbers(counts: str) -> None:
    with pytest.raises(RegionSearchError, match="not a COCO run-length string"):
        rle_runs(counts, 1, 15)


def test_more_run_lengths_than_any_mask_has_are_refused_before_they_are_read() -> None:
    with pytest.raises(RegionSearchError, match="over the limit of 4194304") as caught:
        rle_runs("0" * (MAX_RLE_CHARS + 1), 7000, 7000)
    assert caught.value.kind is Kind.TOO_LARGE


@pytest.mark.parametrize("counts", ["0" * 1_000_000, "1" * 1_000_000, "o" * 6 + "1", compress([1 << 40])])
def test_hostile_run_lengths_take_little_time_and_memory(counts: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RegionSearchError):
            rle_runs(counts, 64, 64)
        assert tracemalloc.get_traced_memory()[1] < 64 * len(counts) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_text_in_the_png_of_a_mask_is_not_read() -> None:
    plain = mask_to_proto(np.eye(8, dtype=np.bool_), types_pb2.MASK_ENCODING_PNG)
    text = b"".join(png.chunk(b"tEXt", b"a\0b") for _ in range(1000))
    plain.png = plain.png[:33] + text + plain.png[33:]
    assert np.array_equal(mask_from_proto(plain), np.eye(8, dtype=np.bool_))
    plain.png = plain.png[:33] + png.chunk(b"tEXt", b"a\0b") * 300_000 + plain.png[33:]
    with pytest.raises(RegionSearchError, match="chunks"):
        mask_from_proto(plain)


@given(masks, st.sampled_from(types_pb2.MaskEncoding.values()))
def test_message_round_trip(mask: np.ndarray, encoding: int) -> None:
    assert np.array_equal(mask_from_proto(mask_to_proto(mask, encoding)), mask)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_every_one_channel_png_is_a_mask(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    image.putpixel((2, 0), 1)  # the least value that is not 0, whatever it looks like
    out = io.BytesIO()
    image.save(out, "PNG")
    mask = mask_from_proto(types_pb2.Mask(height=2, width=3, png=out.getvalue()))
    assert mask.tolist() == [[False, False, True], [False, False, False]]


@given(masks)
def test_box_is_tight_and_half_open(mask: np.ndarray) -> None:
    box = mask_box(mask)
    if box is None:
        assert not mask.any()
        return
    x_min, y_min, x_max, y_max = (int(edge) for edge in box)
    inside = mask[y_min:y_max, x_min:x_max]
    assert inside.sum() == mask.sum()
    assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@pytest.mark.parametrize(
    "proto",
    [
        types_pb2.Mask(height=2, width=2),
        types_pb2.Mask(height=0, width=2, coco_rle="4"),
        types_pb2.Mask(height=2, width=2, packed_bits=b"12"),
        types_pb2.Mask(height=2, width=2, png=b"no png"),
        types_pb2.Mask(height=2, width=2, png=mask_to_proto(np.ones((3, 3), np.bool_), 3).png),
        types_pb2.Mask(height=2, width=2, png=encode_image(np.zeros((2, 2, 3), np.uint8))),
        types_pb2.Mask(height=60_000, width=60_000, coco_rle="4"),
    ],
)
def test_what_does_not_fit_is_refused(proto: types_pb2.Mask) -> None:
    with pytest.raises(RegionSearchError) as caught:
        mask_from_proto(proto, "regions[2].mask")
    assert caught.value.field is not None
    assert caught.value.field.startswith("regions[2].mask")
