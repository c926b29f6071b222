"""Everything mode against SamAutomaticMaskGenerator, mask by mask."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator

from services.segmenter.backends.base import ModelIdentity
from services.segmenter.backends.sam import SamBackend
from services.segmenter.everything import Region, segment_everything
from services.segmenter.options import EverythingOptions

# Low enough that some hundred candidates pass, whatever the weights.
OPEN = EverythingOptions(points_per_side=4, pred_iou_thresh=0.3, stability_score_thresh=0.4)


def assert_same(backend: SamBackend, image: NDArray[np.uint8], options: EverythingOptions) -> list[Region]:
    expected: list[dict[str, Any]] = SamAutomaticMaskGenerator(backend.model, **asdict(options)).generate(
        image
    )
    regions = segment_everything(backend, image, options)
    assert len(regions) == len(expected)
    for region, record in zip(regions, expected, strict=True):
        left, top, right, bottom = region.box
        # Another order of summation may move a pixel whose logit is a rounding error away from the threshold.
        different = (region.runs.to_mask() != record["segmentation"]).sum()
        assert different <= 1
        if different == 0:
            assert [left, top, right - left, bottom - top] == record["bbox"]
            assert region.area == record["area"]
        assert region.predicted_iou == pytest.approx(record["predicted_iou"], abs=1e-4)
        assert region.stability_score == pytest.approx(record["stability_score"], abs=1e-3, nan_ok=True)
        assert [list(region.point or ())] == record["point_coords"]
        crop = region.crop
        assert [crop.left, crop.top, crop.size[1], crop.size[0]] == record["crop_box"]
    return regions


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9},
        {"stability_score_offset": 2.0, "stability_score_thresh": 0.05},
        {"box_nms_thresh": 0.3},
        {"min_mask_region_area": 60},
        {"crop_n_layers": 1, "points_per_side": 3},
        {
            "crop_n_layers": 1,
            "points_per_side": 2,
            "crop_n_points_downscale_factor": 1,
            "crop_nms_thresh": 0.5,
            "crop_overlap_ratio": 0.2,
            "min_mask_region_area": 30,
        },
    ],
)
def test_every_option_gives_the_reference_answer(
    pocket: SamBackend, coffee: NDArray[np.uint8], changes: dict[str, Any]
) -> None:
    options = EverythingOptions(**(asdict(OPEN) | changes))
    assert len(assert_same(pocket, coffee, options)) > 1


def test_photographs_and_scenes_give_the_reference_answer(
    pocket: SamBackend, astronaut: NDArray[np.uint8], scene: NDArray[np.uint8]
) -> None:
    for image in (astronaut, scene):
        assert len(assert_same(pocket, image, OPEN)) > 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 300), (300, 5), (64, 64)])
def test_odd_shapes_give_the_reference_answer(pocket: SamBackend, shape: tuple[int, int]) -> None:
    options = EverythingOptions(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    if max(shape) / min(shape) * 0.5 >= 256:
        pytest.skip("the reference cannot resize it")
    assert_same(pocket, image, options)


def test_constant_pictures_give_the_reference_answer(pocket: SamBackend) -> None:
    assert_same(pocket, np.full((90, 120, 3), 128, np.uint8), OPEN)


def test_extreme_aspects_do_not_fail(pocket: SamBackend) -> None:
    image = np.zeros((1, 4000, 3), np.uint8)
    regions = segment_everything(pocket, image, EverythingOptions(points_per_side=2, pred_iou_thresh=0.0))
    assert all(region.runs.size == (1, 4000) for region in regions)


def test_grey_pictures_give_the_reference_answer(pocket: SamBackend, coffee: NDArray[np.uint8]) -> None:
    grey = np.repeat(np.array(Image.fromarray(coffee).convert("L"))[..., None], 3, axis=2)
    assert_same(pocket, grey, OPEN)


def test_pieces_of_any_size_give_one_answer(
    pocket: SamBackend, coffee: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segment_everything(pocket, coffee, OPEN)
    monkeypatch.setattr("services.segmenter.everything.STRIP_PIXELS", 999)
    monkeypatch.setattr(pocket, "decode_batch", 5)
    pieces = segment_everything(pocket, coffee, OPEN)
    assert [region.runs.coco_rle() for region in pieces] == [region.runs.coco_rle() for region in whole]


def test_half_precision_finds_the_same_regions(pocket: SamBackend, scene: NDArray[np.uint8]) -> None:
    """Regions of bf16 paired with those of fp32 by IoU 0.9."""
    identity = ModelIdentity("sam", "pocket", "", "bf16", "cpu")
    options = EverythingOptions(points_per_side=8, pred_iou_thresh=0.3, stability_score_thresh=0.4)
    full = segment_everything(pocket, scene, options)
    half = segment_everything(SamBackend(pocket.model, identity), scene, options)
    masks = [torch.from_numpy(region.runs.to_mask()) for region in half]

    def best_iou(region: Region) -> float:
        mask = torch.from_numpy(region.runs.to_mask())
        return max(((mask & other).sum() / (mask | other).sum()).item() for other in masks)

    matched = sum(best_iou(region) >= 0.9 for region in full)
    assert matched >= 0.6 * len(full) > 0
