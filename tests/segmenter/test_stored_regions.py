"""Segment-then-select: stored regions, no model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.masks import BoolMask, decode_rle, encode_rle
from regionsearch.prompts import (
    box_iou,
    merge_masks,
    select_by_box,
    select_by_points,
    select_by_scores,
)

SIZE = (40, 50)


def block(top: int, left: int, height: int, width: int) -> str:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return encode_rle(mask)


PERSON, HEAD, SHIRT, DOG = (
    block(5, 5, 30, 15),
    block(5, 5, 8, 15),
    block(13, 5, 10, 15),
    block(20, 30, 10, 10),
)
MASKS = [PERSON, HEAD, SHIRT, DOG]


@pytest.mark.parametrize(
    ("points", "labels", "expected"),
    [
        ([(10, 8)], [1], [1]),  # the smallest that holds it
        ([(10, 8), (10, 15)], [1, 1], [0]),  # one region holds both
        ([(10, 8), (35, 25)], [1, 1], [1, 3]),  # none does: they merge
        ([(10, 15), (10, 8)], [1, 0], [2]),
        ([(10, 30), (10, 8)], [1, 0], []),  # only the person holds the leg, and the head is excluded
        ([(10, 8), (10, 15), (12, 9)], [1, 1, 0], [2]),
        ([(45, 2)], [1], []),
        ([(-1, 8)], [1], []),
        ([(10, 40)], [1], []),
        ([(5, 5)], [1], [1]),
        ([(19.99, 5)], [1], [1]),
        ([(20, 5)], [1], []),
    ],
)
def test_regions_are_selected_by_points(
    points: list[tuple[float, float]], labels: list[int], expected: list[int]
) -> None:
    assert select_by_points(MASKS, SIZE, points, labels) == expected


def test_points_need_a_foreground_point() -> None:
    with pytest.raises(RegionSearchError) as caught:
        select_by_points(MASKS, SIZE, [(1, 1)], [0])
    assert caught.value.kind is Kind.INVALID_ARGUMENT


@settings(deadline=None)
@given(
    st.lists(arrays(np.bool_, (6, 7)), max_size=6),
    st.integers(0, 6),
    st.integers(0, 5),
    st.integers(0, 6),
    st.integers(0, 5),
)
def test_one_foreground_and_one_background_point(
    masks: list[BoolMask], x: int, y: int, u: int, v: int
) -> None:
    fitting = [(mask.sum(), index) for index, mask in enumerate(masks) if mask[y, x] and not mask[v, u]]
    expected = [min(fitting)[1]] if fitting else []
    chosen = select_by_points([encode_rle(mask) for mask in masks], (6, 7), [(x, y), (u, v)], [1, 0])
    assert chosen == expected


def test_box_takes_the_highest_iou_then_the_larger_area() -> None:
    boxes = [(0, 0, 10, 10), (0, 0, 20, 20), (30, 30, 40, 40), (0, 0, 20, 20)]
    assert select_by_box(boxes, [100, 50, 100, 300], (1, 1, 10, 10)) == 0
    assert select_by_box(boxes, [100, 50, 100, 300], (0, 0, 19, 20)) == 3
    assert select_by_box(boxes, [100, 50, 100, 50], (0, 0, 19, 20)) == 1
    assert select_by_box(boxes, [100, 50, 100, 300], (22, 22, 29, 29)) is None
    assert select_by_box([], [], (0, 0, 1, 1)) is None


def test_scores_take_the_first_of_the_best() -> None:
    assert select_by_scores([0.1, 0.7, 0.7]) == 1
    assert select_by_scores([]) is None


def test_boxes_without_area_have_no_iou() -> None:
    assert box_iou([(3, 3, 3, 9), (0, 0, 2, 2)], (0, 0, 4, 2)).tolist() == [0, 0.5]


def test_merging_is_the_union() -> None:
    merged = decode_rle(merge_masks([HEAD, DOG], SIZE), *SIZE)
    np.testing.assert_array_equal(merged, decode_rle(HEAD, *SIZE) | decode_rle(DOG, *SIZE))


def test_damaged_masks_are_refused() -> None:
    with pytest.raises(RegionSearchError):
        merge_masks(["~~~"], SIZE)
