from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import nn

from services.segmenter.backends.base import ModelIdentity
from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.sam import SamBackend
from services.segmenter.options import EverythingOptions
from services.segmenter.service import warmup
from services.torch_runtime.convolutions import fold_batch_norms, optimize_convolutions
from tests.segmenter.parity import assert_parity

SMALL = {"body": "regnetx_002", "width": 32, "detail": 16, "outline": 8, "last_blocks": 1, "img_size": 64}


@torch.inference_mode()
def test_networks_with_their_normalisation_folded_give_the_same_answer() -> None:
    torch.manual_seed(0)
    sam = build_pocket_sam(img_size=64, width=32, refiner=SMALL, proposer={"channels": 32, "width": 16})
    for layer in sam.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_(std=0.1)
    folded = copy.deepcopy(sam)
    fold_batch_norms(folded)
    optimize_convolutions(folded.image_encoder, pack=True)
    for name, shape in (("image_encoder", (2, 3, 64, 64)), ("proposer", (2, 32, 8, 8))):
        inputs = torch.randn(shape)
        expected = getattr(sam, name)(inputs)
        torch.testing.assert_close(getattr(folded, name)(inputs), expected, rtol=1e-4, atol=1e-4)
    maps = torch.randn(2, 9, 64, 64)
    for got, expected in zip(folded.refiner(maps), sam.refiner(maps), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_bundled_model_is_served_without_normalisation_layers(pocket: SamBackend) -> None:
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in pocket.model.modules())
    maps = pocket.model.image_encoder(torch.zeros(1, 3, 384, 384))
    assert maps.is_contiguous(memory_format=torch.channels_last)


class TinyEncoder(nn.Module):
    """In the place of an encoder that takes long to compile."""

    img_size = 64

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 32, kernel_size=8, stride=8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(image / 64).relu()
        return out


def assert_compiled_answers(sam: Sam, image: NDArray[np.uint8]) -> None:
    """Compares a compiled model with the same one as it is, and with the published generator."""
    identity = ModelIdentity("sam", "compiled", "", "fp32", "cpu")
    plain, compiled = SamBackend(sam, identity), SamBackend(sam, identity, compile_model=True)
    options = EverythingOptions(2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    warmup(compiled, options)
    for count in (1, 3):
        prepared = [plain.prepare(image)] * count
        for got, expected in zip(compiled.encode(prepared), plain.encode(prepared), strict=True):
            torch.testing.assert_close(got.features, expected.features, rtol=1e-4, atol=1e-4)
    assert plain.refiner is not None and compiled.refiner is not None
    side = plain.refiner.net.img_size
    close_ups = [torch.randn(9, side, side) for _ in range(3)]
    answers, expected_answers = compiled.refiner.refine(close_ups), plain.refiner.refine(close_ups)
    torch.testing.assert_close(answers, expected_answers, rtol=1e-3, atol=1e-3)
    assert_parity(compiled, image, options)


def test_a_compiled_model_gives_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, scene: NDArray[np.uint8]
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    sam = build_pocket_sam(img_size=64, width=32, refiner=SMALL)
    sam.image_encoder = TinyEncoder()
    assert_compiled_answers(sam, scene)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bundled_model_compiled_gives_the_same_answer(
    pocket: SamBackend, scene: NDArray[np.uint8]
) -> None:
    assert_compiled_answers(pocket.model, scene)
