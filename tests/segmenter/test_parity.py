"""Everything mode against SamAutomaticMaskGenerator, mask by mask; `parity` says what is demanded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from services.segmenter.backends.sam import SamBackend
from services.segmenter.everything import segment_everything
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions
from tests.segmenter.conftest import resized
from tests.segmenter.parity import LOGIT, Reference, assert_parity

# Low enough that some hundred candidates pass, whatever the weights.
OPEN = EverythingOptions(points_per_side=4, pred_iou_thresh=0.3, stability_score_thresh=0.4)
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}

SCENES = sorted((Path(__file__).parents[2] / "examples" / "scenes").glob("*.jpg"))
PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut,
    "chelsea": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "rocket": skimage.data.rocket,
    "china": lambda: sklearn.datasets.load_sample_image("china.jpg"),
    "flower": lambda: sklearn.datasets.load_sample_image("flower.jpg"),
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ALL | {"box_nms_thresh": 0.9},
        {"pred_iou_thresh": 0.6},
        {"stability_score_thresh": 0.8},
        {"stability_score_offset": 2.0, "stability_score_thresh": 0.05},
        {"stability_score_offset": 0.0},
        {"box_nms_thresh": 0.3},
        {"box_nms_thresh": 1.0},
        {"points_per_side": 5},
        {"min_mask_region_area": 60},
        {"min_mask_region_area": 5000, "box_nms_thresh": 0.95},
        {"crop_n_layers": 1, "points_per_side": 3},
        {"crop_n_layers": 2, "points_per_side": 4, "crop_n_points_downscale_factor": 2},
        {"crop_n_layers": 1, "points_per_side": 3, "crop_nms_thresh": 0.3},
        {"crop_n_layers": 1, "points_per_side": 3, "crop_nms_thresh": 0.5, "crop_overlap_ratio": 0.0}
        | {"min_mask_region_area": 30},
        {"crop_n_layers": 1, "points_per_side": 3, "crop_overlap_ratio": 0.8},
    ],
    ids=str,
)
def test_every_option_of_everything_mode_matches_the_reference(
    pocket: SamBackend, coffee: NDArray[np.uint8], changes: dict[str, Any]
) -> None:
    assert assert_parity(pocket, coffee, replace(OPEN, **changes))


@pytest.mark.parametrize("theirs", [1, 5, 16])
@pytest.mark.parametrize("ours", [1, 7])
def test_batches_of_any_size_match_the_reference(
    pocket: SamBackend, coffee: NDArray[np.uint8], theirs: int, ours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocket, "decode_batch", ours)
    assert_parity(pocket, coffee, replace(OPEN, points_per_side=3), points_per_batch=theirs)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_match_the_reference(pocket: SamBackend, name: str) -> None:
    image = PHOTOGRAPHS[name]()
    height, width = image.shape[:2]
    options = replace(OPEN, box_nms_thresh=0.95, **ALL)
    assert len(assert_parity(pocket, resized(image, height // 2, width // 2), options)) > 1


@pytest.mark.parametrize("file", SCENES[:4], ids=lambda file: file.stem)
def test_scenes_match_the_reference(pocket: SamBackend, file: Path) -> None:
    assert len(assert_parity(pocket, np.array(Image.open(file).convert("RGB")), OPEN)) > 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 300), (300, 5), (64, 64)], ids=str)
def test_images_of_extreme_shapes_match_the_reference(pocket: SamBackend, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert_parity(pocket, image, replace(OPEN, points_per_side=2, **ALL))


def test_constant_and_grey_images_match_the_reference(pocket: SamBackend, coffee: NDArray[np.uint8]) -> None:
    assert_parity(pocket, np.full((90, 120, 3), 128, np.uint8), OPEN)
    grey = np.repeat(np.array(Image.fromarray(coffee).convert("L"))[..., None], 3, axis=2)
    assert len(assert_parity(pocket, grey, OPEN)) > 1


def test_the_parity_check_notices_a_wrong_answer(pocket: SamBackend, coffee: NDArray[np.uint8]) -> None:
    """A pixel next to the mask, a score that is off by little: the check is worth something."""
    reference = Reference(pocket, OPEN)
    record = reference.generate(coffee)[0]
    region = segment_everything(pocket, coffee, OPEN)[0]
    reference.check(region, record)
    logits = reference.logits(record)
    row, column = np.argwhere(abs(logits) > 2 * LOGIT)[np.abs(logits[abs(logits) > 2 * LOGIT]).argmin()]
    mask = record["segmentation"].copy()
    mask[row, column] ^= True
    for wrong in (
        {"segmentation": mask},
        {"stability_score": record["stability_score"] + 1e-3},
        {"predicted_iou": float(reference._seen[next(iter(reference._seen))][1][0]) + 1e-4},
        {"point_coords": [[1.0, 1.0]]},
    ):
        with pytest.raises((AssertionError, LookupError)):
            reference.check(region, record | wrong)


@pytest.mark.slow
@pytest.mark.parametrize("file", SCENES, ids=lambda file: file.stem)
def test_whole_scenes_with_the_defaults_that_are_served(pocket: SamBackend, file: Path) -> None:
    options = replace(EverythingOptions(), **find_model("pocket").everything)
    assert assert_parity(pocket, np.array(Image.open(file).convert("RGB")), options)


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("changes", [{}, {"crop_n_layers": 1, "min_mask_region_area": 100}], ids=str)
def test_whole_photographs(pocket: SamBackend, name: str, changes: dict[str, Any]) -> None:
    options = replace(OPEN, points_per_side=8, box_nms_thresh=0.9, **ALL, **changes)
    assert len(assert_parity(pocket, PHOTOGRAPHS[name](), options)) > 1
