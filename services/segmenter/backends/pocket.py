"""The pocket segmenter: Segment Anything's own prompt encoder and mask decoder behind a light image encoder.

As in MobileSAM and EfficientViT-SAM only the image encoder differs from the original, so that
``segment_anything.SamPredictor`` and ``SamAutomaticMaskGenerator`` work on it unchanged.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8  # pixels of the input per cell of the image embedding
_DETAIL_STRIDE = 4
_OUTLINE_STRIDE = 2


class PyramidEncoder(nn.Module):
    """A convolutional body and a feature pyramid that ends in one map of stride 8.

    The pyramid adds the coarse maps to the map of stride 8, top down (Lin et al. 2017, "Feature Pyramid
    Networks"). Outlines finer than a cell have to reach the mask decoder through its channels: at stride 4
    what the pyramid knows meets the body's first features and the pixels themselves, at stride 2 the pixels
    once more, and both results are folded into the map of stride 8.

    Args:
        body: name of a timm model with features at strides 4, 8, 16 and 32.
        width: channels of the image embedding.
        detail: channels of the map of stride 4.
        outline: channels of the map of stride 2.
        img_size: side of the square input in pixels; the name is that of ``ImageEncoderViT``.
    """

    def __init__(self, body: str, width: int, detail: int, outline: int, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size
        layers: Any = timm.create_model(
            body, pretrained=False, features_only=True, out_indices=(-4, -3, -2, -1)
        )
        fine, *levels = layers.feature_info.channels()
        self.body = layers
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, kernel_size=1) for channels in levels)
        self.smooth = nn.ModuleList(_convolution(width, width) for _ in levels)
        self.lift = nn.Conv2d(width, detail // 2, kernel_size=1)
        met = fine + detail // 2 + 3 * _DETAIL_STRIDE**2
        self.detail = nn.Sequential(_convolution(met, detail), _convolution(detail, detail))
        folded = STRIDE // _DETAIL_STRIDE
        self.fold = nn.Conv2d(fine + detail, width, kernel_size=folded, stride=folded)
        self.lift_detail = nn.Conv2d(detail, outline, kernel_size=1)
        met = outline + 3 * _OUTLINE_STRIDE**2
        self.outline = nn.Sequential(_convolution(met, outline), _convolution(outline, outline))
        folded = STRIDE // _OUTLINE_STRIDE
        self.fold_outline = nn.Conv2d(outline, width, kernel_size=folded, stride=folded)
        self.mix = nn.Sequential(_convolution(width, width), nn.Conv2d(width, width, kernel_size=1))
        self.norm = LayerNorm2d(width)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised pixels (B, 3, side, side) to embeddings (B, width, side / 8, side / 8)."""
        fine, *levels = self.body(image)
        coarser: Tensor | None = None
        for level, lateral, smooth in zip(
            reversed(levels), reversed(self.laterals), reversed(self.smooth), strict=True
        ):
            features = lateral(level)
            if coarser is not None:
                features = features + F.interpolate(coarser, size=features.shape[-2:], mode="nearest")
            coarser = smooth(features)
        assert coarser is not None
        lifted = F.interpolate(self.lift(coarser), scale_factor=2, mode="nearest")
        pixels = F.pixel_unshuffle(image, _DETAIL_STRIDE).to(fine.dtype)
        detail = self.detail(torch.cat([fine, lifted, pixels], 1))
        mixed = self.mix(coarser + self.fold(torch.cat([fine, detail], 1)))
        lifted = F.interpolate(self.lift_detail(detail), scale_factor=2, mode="nearest")
        pixels = F.pixel_unshuffle(image, _OUTLINE_STRIDE).to(fine.dtype)
        outline = self.outline(torch.cat([lifted, pixels], 1))
        embedding: Tensor = self.norm(mixed + self.fold_outline(outline))
        return embedding


def _convolution(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def build_pocket_sam(
    *,
    body: str = "regnetx_004",
    img_size: int = 384,
    width: int = 128,
    detail: int = 64,
    outline: int = 32,
    heads: int = 4,
    depth: int = 2,
    mlp_width: int = 512,
) -> Sam:
    """Builds the pocket SAM with random weights, in evaluation mode.

    Args:
        body: timm model of the image encoder.
        img_size: side of the square input in pixels, a multiple of 32.
        width: channels of the image embedding and of the decoder.
        detail: channels of the encoder's map of stride 4.
        outline: channels of its map of stride 2.
        heads: attention heads of the decoder.
        depth: two-way layers of the decoder.
        mlp_width: hidden width of the decoder's token MLP.

    Raises:
        ValueError: ``img_size`` is no multiple of 32, or ``width`` none of ``8 * heads``.
    """
    if img_size % 32 or width % (8 * heads):
        raise ValueError(f"img_size {img_size} must be a multiple of 32, width {width} one of {8 * heads}")
    grid = img_size // STRIDE
    sam = Sam(
        image_encoder=PyramidEncoder(body, width, detail, outline, img_size),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(img_size, img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=depth, embedding_dim=width, num_heads=heads, mlp_dim=mlp_width
            ),
            num_multimask_outputs=3,
            activation=nn.ReLU,  # half the time of GELU on the largest maps
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )
    return sam.eval()
