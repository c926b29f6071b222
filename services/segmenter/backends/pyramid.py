"""The common part of the pocket networks: a convolutional body and a feature pyramid."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8  # pixels of the input per cell of the pyramid's coarsest map
_DETAIL_STRIDE = 4
_OUTLINE_STRIDE = 2


class PyramidMaps(NamedTuple):
    """Maps (B, channels, side / stride, side / stride) of one forward pass.

    Attributes:
        deepest: The body's last stage, stride 32.
        coarse: The pyramid's finest level, stride 8.
        fine: The body's first stage, stride 4.
        detail: `fine` merged with the pyramid and the pixels, stride 4.
        outline: `detail` merged with the pixels, stride 2.
    """

    deepest: Tensor
    coarse: Tensor
    fine: Tensor
    detail: Tensor
    outline: Tensor


class Pyramid(nn.Module):
    """A convolutional body and the maps computed from its features.

    The pyramid adds the coarse maps to the map of stride 8, top down (Lin et al. 2017, "Feature Pyramid
    Networks"). At stride 4 what the pyramid knows meets the body's first features and the pixels themselves,
    at stride 2 the pixels once more.

    Args:
        body: name of a timm model with features at strides 4, 8, 16 and 32.
        width: channels of the pyramid.
        detail: channels of the map of stride 4.
        outline: channels of the map of stride 2.
        channels: of the input.
        last_blocks: blocks to keep of the body's last stage; None keeps all of timm's.
    """

    def __init__(
        self,
        body: str,
        width: int,
        detail: int,
        outline: int,
        channels: int = 3,
        last_blocks: int | None = None,
    ) -> None:
        super().__init__()
        layers: Any = timm.create_model(
            body, pretrained=False, features_only=True, out_indices=(-4, -3, -2, -1), in_chans=channels
        )
        if last_blocks is not None:
            *_, last = layers.children()
            for name, _ in list(last.named_children())[last_blocks:]:
                delattr(last, name)
        fine, *levels = layers.feature_info.channels()
        self.body = layers
        self.laterals = nn.ModuleList(nn.Conv2d(depth, width, kernel_size=1) for depth in levels)
        self.smooth = nn.ModuleList(convolution(width, width) for _ in levels)
        self.lift = nn.Conv2d(width, detail // 2, kernel_size=1)
        met = fine + detail // 2 + channels * _DETAIL_STRIDE**2
        self.detail = nn.Sequential(convolution(met, detail), convolution(detail, detail))
        self.lift_detail = nn.Conv2d(detail, outline, kernel_size=1)
        met = outline + channels * _OUTLINE_STRIDE**2
        self.outline = nn.Sequential(convolution(met, outline), convolution(outline, outline))
        self.depths = fine, *levels

    def maps(self, image: Tensor) -> PyramidMaps:
        """Computes the maps of a normalised input (B, channels, side, side)."""
        fine, *levels = self.body(image)
        coarse: Tensor | None = None
        for level, lateral, smooth in zip(
            reversed(levels), reversed(self.laterals), reversed(self.smooth), strict=True
        ):
            features = lateral(level)
            if coarse is not None:
                features = features + F.interpolate(coarse, size=features.shape[-2:], mode="nearest")
            coarse = smooth(features)
        assert coarse is not None
        pixels = image.to(fine.dtype)
        lifted = F.interpolate(self.lift(coarse), scale_factor=2, mode="nearest")
        detail = self.detail(torch.cat([fine, lifted, F.pixel_unshuffle(pixels, _DETAIL_STRIDE)], 1))
        lifted = F.interpolate(self.lift_detail(detail), scale_factor=2, mode="nearest")
        outline = self.outline(torch.cat([lifted, F.pixel_unshuffle(pixels, _OUTLINE_STRIDE)], 1))
        return PyramidMaps(levels[-1], coarse, fine, detail, outline)


def convolution(channels: int, width: int) -> nn.Sequential:
    """A 3 x 3 convolution that keeps the size, normalised and rectified."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
