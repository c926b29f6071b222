"""Run lengths against segment_anything's and pycocotools'."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from regionsearch.masks import BoolMask, RunLengthMask, decode_rle, encode_rle, mask_box

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=24))


@pytest.mark.stack  # loads torch
@settings(deadline=None)
@given(masks)
def test_runs_are_the_reference_runs(mask: BoolMask) -> None:
    import torch
    from segment_anything.utils.amg import area_from_rle, mask_to_rle_pytorch

    runs = RunLengthMask.from_windows((mask.shape[0], mask.shape[1]), [(mask, 0, 0)])
    expected = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    assert runs.counts().tolist() == expected["counts"]
    assert runs.area == area_from_rle(expected) == mask.sum()
    assert runs.coco_rle() == encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(runs.coco_rle(), *runs.size), mask)
    np.testing.assert_array_equal(runs.to_mask(), mask)


@settings(deadline=None)
@given(masks, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 24))
def test_windows_lie_where_they_were_cut(
    mask: BoolMask, top: int, left: int, below: int, beyond: int, strip: int
) -> None:
    whole = np.pad(mask, ((top, below), (left, beyond)))
    strips = [(mask[:, start : start + strip], top, left + start) for start in range(0, mask.shape[1], strip)]
    runs = RunLengthMask.from_windows((whole.shape[0], whole.shape[1]), strips)
    np.testing.assert_array_equal(runs.to_mask(), whole)
    assert runs.coco_rle() == encode_rle(whole)
    np.testing.assert_array_equal(
        runs.window(0, whole.shape[0], left, left + mask.shape[1]), whole[:, left : left + mask.shape[1]]
    )


def test_no_window_is_an_empty_mask() -> None:
    runs = RunLengthMask.from_windows((3, 4), [])
    assert runs.counts().tolist() == [12]
    assert runs.area == 0
    assert not runs.to_mask().any()


@st.composite
def electorates(draw: st.DrawFn) -> tuple[list[BoolMask], list[float]]:
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    masks = draw(st.lists(arrays(bool, shape), min_size=1, max_size=6))
    weights = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.75, 1.0])
    return masks, draw(st.lists(weights, min_size=len(masks), max_size=len(masks)))


@given(electorates())
def test_a_vote_gives_what_masks_of_more_than_half_of_the_weight_have(
    electorate: tuple[list[BoolMask], list[float]],
) -> None:
    masks, weights = electorate
    runs = RunLengthMask.vote(
        [RunLengthMask.from_windows(mask.shape, [(mask, 0, 0)]) for mask in masks], weights
    )
    cover = sum(weight * mask for weight, mask in zip(weights, masks, strict=True))
    expected = np.asarray(cover > sum(weights) / 2 + 1e-6)
    assert (runs.to_mask() == expected).all()
    again = RunLengthMask.from_windows(expected.shape, [(expected, 0, 0)])  # the only runs that the mask has
    assert runs.starts.tolist() == again.starts.tolist()
    assert runs.stops.tolist() == again.stops.tolist()


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_the_box_of_runs_is_that_of_their_mask(mask: BoolMask) -> None:
    rows, columns = mask.nonzero()
    expected = (columns.min(), rows.min(), columns.max(), rows.max()) if mask.any() else (0, 0, 0, 0)
    assert RunLengthMask.from_windows(mask.shape, [(mask, 0, 0)]).box == expected


@settings(deadline=None)
@given(masks, st.data())
def test_a_mask_read_from_its_string_is_the_mask(mask: BoolMask, data: st.DataObject) -> None:
    height, width = mask.shape
    runs = RunLengthMask.from_coco_rle(encode_rle(mask), height, width)
    same = RunLengthMask.from_mask(mask)
    assert (runs.starts.tolist(), runs.stops.tolist()) == (same.starts.tolist(), same.stops.tolist())
    assert runs.area == mask.sum()
    left, top, right, bottom = runs.box
    assert mask_box(mask) == ((left, top, right + 1, bottom + 1) if mask.any() else None)
    x = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    y = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    np.testing.assert_array_equal(runs.window(*y, *x), mask[y[0] : y[1], x[0] : x[1]])
    rows, columns = np.indices(mask.shape).reshape(2, -1)
    np.testing.assert_array_equal(runs.contains(rows, columns), mask.reshape(-1))


def test_runs_of_no_pixels_in_a_string_are_dropped() -> None:
    """Uncompressed: 0 zeros, 0 ones, 1 zero, 2 ones, 0 zeros, 1 one, 2 zeros, 0 ones."""
    compressed = coco.frPyObjects({"size": [2, 3], "counts": [0, 0, 1, 2, 0, 1, 2, 0]}, 2, 3)["counts"]
    runs = RunLengthMask.from_coco_rle(compressed.decode(), 2, 3)
    assert (runs.starts.tolist(), runs.stops.tolist()) == ([1], [4])
    assert runs.box == (0, 0, 1, 1)
