from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regionsearch.masks import BoolMask, RunLengthMask, mask_box
from services.segmenter.everything import Region
from services.segmenter.grid import Crop
from services.segmenter.options import RankBy, SelectionOptions
from services.segmenter.regions import select_regions

ANY = SelectionOptions(min_side=0, min_area=0, max_area_fraction=1, mask_nms_thresh=1)


def region(mask: BoolMask, iou: float = 0.9, stability: float = 0.9) -> Region:
    height, width = mask.shape
    x_min, y_min, x_max, y_max = (int(edge) for edge in mask_box(mask) or (0, 0, 1, 1))
    runs = RunLengthMask.from_windows((height, width), [(mask, 0, 0)])
    box = (x_min, y_min, x_max - 1, y_max - 1)
    return Region(runs, box, iou, stability, None, Crop(0, 0, width, height, 0))


def block(top: int, left: int, height: int, width: int) -> BoolMask:
    mask = np.zeros((40, 50), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_limits_of_size_and_stability() -> None:
    thin, small, fine = region(block(0, 0, 30, 3)), region(block(0, 0, 5, 5)), region(block(0, 0, 10, 10))
    whole, shaky = region(block(0, 0, 40, 50)), region(block(20, 20, 10, 10), stability=0.5)
    options = SelectionOptions(min_side=4, min_area=30, max_area_fraction=0.9, min_stability_score=0.6)
    assert select_regions([thin, small, fine, whole, shaky], options) == [fine]


def test_best_first_ties_by_area_then_order() -> None:
    good, large = region(block(0, 0, 9, 9), 0.99), region(block(10, 10, 12, 12), 0.8)
    first, second = region(block(25, 0, 9, 9), 0.8), region(block(25, 20, 9, 9), 0.8)
    assert select_regions([first, second, large, good], ANY) == [good, large, first, second]
    limited = SelectionOptions(min_side=0, min_area=0, max_regions=2)
    assert select_regions([first, second, large, good], limited) == [good, large]


def test_the_largest_first_where_regions_are_ranked_by_area() -> None:
    good, large = region(block(0, 0, 9, 9), 0.99), region(block(10, 10, 12, 12), 0.8)
    better = region(block(25, 0, 9, 9), 0.995)
    by_area = replace(ANY, rank_by=RankBy.AREA)
    assert select_regions([good, better, large], by_area) == [large, better, good]
    assert select_regions([good, better, large], replace(by_area, max_regions=1)) == [large]


def test_near_duplicates_are_told_by_their_pixels() -> None:
    plate = block(5, 5, 20, 20)
    ring = plate & ~block(7, 7, 16, 16)
    nested = block(6, 6, 19, 19)
    kept = select_regions(
        [region(plate, 0.9), region(ring, 0.8), region(nested, 0.7)], SelectionOptions(min_side=0)
    )
    assert [item.area for item in kept] == [400, 144]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(arrays(np.bool_, (8, 9)), st.floats(0, 1), st.floats(0, 1)), max_size=12),
    st.floats(0.1, 0.9),
    st.integers(1, 5),
)
def test_what_is_kept_is_ranked_distinct_and_limited(
    drawn: list[tuple[BoolMask, float, float]], thresh: float, most: int
) -> None:
    regions = [region(mask, iou, stability) for mask, iou, stability in drawn]
    options = SelectionOptions(0, 1, 1.0, 0.0, thresh, most)
    kept = select_regions(regions, options)
    assert len(kept) <= most
    ranks = [item.predicted_iou * item.stability_score for item in kept]
    assert ranks == sorted(ranks, reverse=True)
    masks = [item.runs.to_mask() for item in kept]
    for index, mask in enumerate(masks):
        assert mask.any()
        for other in masks[:index]:
            assert (mask & other).sum() / (mask | other).sum() <= thresh + 1e-6
    assert select_regions(regions, options) == kept
