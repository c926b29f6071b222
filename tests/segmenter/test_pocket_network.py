from __future__ import annotations

import copy

import torch
from torch import nn

from services.segmenter.backends.pocket import build_pocket_sam, optimize_for_inference
from services.segmenter.backends.sam import SamBackend

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
    optimize_for_inference(folded)
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
