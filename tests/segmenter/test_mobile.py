"""MobileSAM: published names of its weights, and the answer of the published generator on its model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from regionsearch.errors import Kind, RegionSearchError
from services.segmenter.backends import load_backend
from services.segmenter.backends.mobile import build_mobile_sam
from services.segmenter.backends.sam import SamBackend
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions
from tests.segmenter.parity import assert_parity


def published(name: str) -> str:
    """The name that ``mobile_sam.pt`` has for a weight."""
    if not name.startswith("image_encoder.") or ".neck." in name:
        return name
    name = name.replace(".conv.", ".c.").replace("patch_embed.conv1", "patch_embed.seq.0")
    name = name.replace("patch_embed.conv2", "patch_embed.seq.2")
    name = re.sub(r"stages\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
    return name.replace("stages.", "layers.")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sam = build_mobile_sam()
    torch.nn.init.constant_(sam.mask_decoder.iou_prediction_head.layers[-1].bias, 0.9)
    weights = {published(name): value for name, value in sam.state_dict().items()}
    weights |= {"image_encoder.norm_head.weight": torch.ones(320), "image_encoder.head.bias": torch.ones(9)}
    path = tmp_path_factory.mktemp("weights") / "mobile_sam.pt"
    torch.save(weights, path)
    return path


def test_published_weights_are_loaded_under_their_names(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.segmenter.backends.sam.optimize_convolutions", lambda *_, **__: None)
    backend = load_backend(find_model(str(checkpoint)), "cpu", "fp32")
    assert isinstance(backend, SamBackend)
    assert (backend.identity.family, backend.identity.variant) == ("sam", "mobile")
    weights = torch.load(checkpoint, weights_only=True)
    for name, value in backend.model.state_dict().items():
        assert torch.equal(value, weights[published(name)])


@pytest.mark.slow
def test_published_weights_give_the_published_generators_answer(
    checkpoint: Path, coffee: NDArray[np.uint8]
) -> None:
    backend = load_backend(find_model(str(checkpoint)), "cpu", "fp32")
    assert isinstance(backend, SamBackend)
    options = EverythingOptions(2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    assert len(assert_parity(backend, coffee, options)) > 1


def test_weights_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    del weights["image_encoder.layers.2.downsample.conv2.c.weight"]
    torch.save(weights, tmp_path / "mobile_sam.pt")
    with pytest.raises(RegionSearchError) as caught:
        load_backend(find_model(str(tmp_path / "mobile_sam.pt")), "cpu", "fp32")
    assert caught.value.kind is Kind.DATA_LOSS
