"""Everything mode beyond what `test_parity` compares with the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.segmenter.backends.base import ModelIdentity
from services.segmenter.backends.sam import SamBackend
from services.segmenter.everything import Region, segment_everything
from services.segmenter.masks import PASSES, PassCost
from services.segmenter.options import EverythingOptions

# Low enough that some hundred candidates pass, whatever the weights.
OPEN = EverythingOptions(points_per_side=4, pred_iou_thresh=0.3, stability_score_thresh=0.4)


def test_extreme_aspects_do_not_fail(pocket: SamBackend) -> None:
    image = np.zeros((1, 4000, 3), np.uint8)
    regions = segment_everything(pocket, image, EverythingOptions(points_per_side=2, pred_iou_thresh=0.0))
    assert all(region.runs.size == (1, 4000) for region in regions)


def test_grid_pieces_of_any_size_give_the_same_regions(
    pocket: SamBackend, coffee: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segment_everything(pocket, coffee, OPEN)
    monkeypatch.setitem(PASSES, "cpu", PassCost(pixels=999, overhead=0))
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
    assert matched >= 0.9 * len(full) > 0
