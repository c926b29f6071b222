from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from segment_anything.utils.amg import build_all_layer_point_grids, generate_crop_boxes

from regionsearch.errors import Kind, RegionSearchError
from services.segmenter.grid import Crop, grid_points, plan_crops
from services.segmenter.options import EverythingOptions, SelectionOptions


@example(40, 41, 3, 0.0)
@given(st.integers(40, 3000), st.integers(40, 3000), st.integers(0, 3), st.floats(0, 0.6))
def test_crops_are_the_reference_crops(height: int, width: int, layers: int, overlap: float) -> None:
    options = EverythingOptions(crop_n_layers=layers, crop_overlap_ratio=overlap)
    boxes, layer_of = generate_crop_boxes((height, width), layers, overlap)
    # Where there are fewer pixels than crops, the reference goes on with empty ones, and fails.
    expected = [Crop(*box, layer) for box, layer in zip(boxes, layer_of, strict=True)]
    expected = [crop for crop in expected if crop.left < crop.right and crop.top < crop.bottom]
    assert plan_crops((height, width), options) == expected


@given(st.integers(8, 64), st.integers(0, 2), st.integers(1, 2))
def test_points_are_the_reference_points(per_side: int, layer: int, factor: int) -> None:
    options = EverythingOptions(
        points_per_side=per_side, crop_n_layers=2, crop_n_points_downscale_factor=factor
    )
    crop = Crop(10, 20, 130, 90, layer)
    expected = build_all_layer_point_grids(per_side, 2, factor)[layer] * np.array([[120, 70]])
    np.testing.assert_array_equal(grid_points(crop, options), expected)


@given(st.integers(8, 64), st.integers(0, 3), st.integers(1, 2))
def test_crops_and_points_are_known_beforehand(per_side: int, layers: int, factor: int) -> None:
    options = EverythingOptions(
        points_per_side=per_side, crop_n_layers=layers, crop_n_points_downscale_factor=factor
    )
    crops = plan_crops((900, 1200), options)
    assert options.crops == len(crops)
    assert options.points == sum(len(grid_points(crop, options)) for crop in crops)


@given(st.integers(1, 12), st.integers(1, 12))
def test_tiny_images_have_no_empty_crops(height: int, width: int) -> None:
    crops = plan_crops((height, width), EverythingOptions(crop_n_layers=4))
    assert crops[0] == Crop(0, 0, width, height, 0)
    assert all(crop.size[0] > 0 and crop.size[1] > 0 for crop in crops)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (EverythingOptions(points_per_side=0), "everything.points_per_side"),
        (EverythingOptions(points_per_side=129), "everything.points_per_side"),
        (EverythingOptions(pred_iou_thresh=float("nan")), "everything.pred_iou_thresh"),
        (EverythingOptions(stability_score_offset=-1), "everything.stability_score_offset"),
        (EverythingOptions(crop_n_layers=5), "everything.crop_n_layers"),
        (EverythingOptions(min_mask_region_area=-1), "everything.min_mask_region_area"),
        (
            EverythingOptions(points_per_side=4, crop_n_layers=3, crop_n_points_downscale_factor=2),
            "everything.crop_n_points_downscale_factor",
        ),
        (SelectionOptions(max_regions=0), "everything.selection.max_regions"),
        (SelectionOptions(max_area_fraction=1.5), "everything.selection.max_area_fraction"),
    ],
)
def test_options_out_of_range_are_refused_by_name(
    options: EverythingOptions | SelectionOptions, field: str
) -> None:
    with pytest.raises(RegionSearchError) as caught:
        options.check()
    assert caught.value.kind is Kind.INVALID_ARGUMENT
    assert caught.value.field == field
