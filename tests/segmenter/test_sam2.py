"""The second family: nothing in the engine knows which one runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from regionsearch.errors import Kind, RegionSearchError
from services.segmenter.backends import sam2 as family
from services.segmenter.backends.base import ModelIdentity
from services.segmenter.everything import segment_everything
from services.segmenter.grid import Crop
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions
from services.segmenter.prompts import Prompt, decode_prompts, draw_answers, group_prompts, stack_prompts


def test_without_its_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sam2.build_sam", None)
    with pytest.raises(RegionSearchError, match=r"regionsearch\[sam2\]") as caught:
        family.build("sam2.1_hiera_t")
    assert caught.value.kind is Kind.FAILED_PRECONDITION


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_load_from_both_formats(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("sam2", reason="the sam2 extra is not installed")
    torch.manual_seed(0)
    weights = family.build("sam2.1_hiera_t").state_dict()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pt":
        torch.save({"model": weights}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    backend = family.load(find_model(str(path)), "cpu", "fp32", False)
    assert backend.identity.variant == "sam2.1_hiera_t"
    assert all(tensor.equal(weights[name]) for name, tensor in backend.model.state_dict().items())


@pytest.mark.timeout(600)
def test_prompts_give_the_masks_of_its_predictor(coffee: NDArray[np.uint8]) -> None:
    predictors = pytest.importorskip("sam2.sam2_image_predictor", reason="the sam2 extra is not installed")
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    smaller = ["++model.image_size=512"]  # half as many pixels a side: a quarter of the work
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", hydra_overrides_extra=smaller)
    predictor = predictors.SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(128, 128), (64, 64), (32, 32)]
    predictor.set_image(coffee)
    backend = family.Sam2Backend(model, ModelIdentity("sam2", "sam2.1_hiera_t", "", "fp32", "cpu"))
    (embedding,) = backend.encode([backend.prepare(coffee)])
    size = coffee.shape[:2]
    points, box = np.array([[100.0, 80.0], [20.0, 30.0]]), (20.0, 30.0, 200.0, 150.0)
    prompts = [
        Prompt(points, np.array([1, 0], np.int32)),
        Prompt(np.empty((0, 2)), np.empty(0, np.int32), box),
        Prompt(points[:1], np.array([1], np.int32), box),
    ]
    for multimask in (False, True):
        for places in group_prompts(prompts):
            batch = stack_prompts([prompts[place] for place in places], embedding.geometry, backend.mask_size)
            decoded = decode_prompts(backend, embedding, batch, multimask)
            (answer,) = draw_answers(backend, embedding, decoded, Crop.whole(size), size)
            asked = prompts[places[0]]
            masks, ious, _ = predictor.predict(
                asked.points if len(asked.points) else None,
                asked.labels if len(asked.points) else None,
                None if asked.box is None else np.array(asked.box),
                multimask_output=multimask,
            )
            by_iou = sorted(answer, key=lambda candidate: -candidate.region.predicted_iou)
            for candidate, place in zip(by_iou, np.argsort(-ious, kind="stable"), strict=True):
                assert candidate.region.predicted_iou == pytest.approx(ious[place], abs=1e-3)
                assert (candidate.region.runs.to_mask() != masks[place]).mean() < 1e-3

    options = EverythingOptions(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)
    regions = segment_everything(backend, coffee, options)
    assert regions
    assert all(region.runs.size == coffee.shape[:2] for region in regions)
