from __future__ import annotations

import copy

import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from services.torch_runtime.convolutions import PackedConvolution, optimize_convolutions

TIMM = ("regnetx_002", "resnet18", "fastvit_t8", "mobilenetv2_050", "resnetv2_18", "tiny_vit_5m_224")


def network(name: str) -> nn.Module:
    """With statistics as of a trained network: a layer that is folded into the wrong one shows."""
    torch.manual_seed(0)
    if name in TIMM:
        model = timm.create_model(name, pretrained=False, num_classes=8)
    else:
        model = ModifiedResNet([1, 1, 1, 1], 32, heads=4, image_size=64, width=16)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1)
            nn.init.normal_(layer.bias, std=0.1)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", [*TIMM, "ModifiedResNet"])
@torch.inference_mode()
def test_an_optimized_network_gives_the_same_answer(name: str, pack: bool) -> None:
    model = network(name)
    fast = copy.deepcopy(model)
    optimize_convolutions(fast, pack=pack)
    images = torch.randn(3, 3, 224 if "224" in name else 64, 224 if "224" in name else 64)
    expected = model(images)
    torch.testing.assert_close(fast(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    if pack and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        assert any(isinstance(layer, PackedConvolution) for layer in fast.modules())
    if name in ("regnetx_002", "resnet18", "ModifiedResNet"):
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fast.modules())


@torch.inference_mode()
def test_a_packed_convolution_takes_every_shape() -> None:
    layer = nn.Conv2d(6, 8, (3, 1), stride=2, padding=(1, 0), groups=2, bias=False).requires_grad_(False)
    fast = nn.Sequential(layer)
    optimize_convolutions(fast, pack=True)
    for shape in ((1, 6, 9, 7), (5, 6, 1, 1), (0, 6, 4, 4)):
        maps = torch.randn(shape)
        torch.testing.assert_close(fast(maps), layer(maps))
