"""MobileSAM: Segment Anything's prompt encoder and mask decoder behind a TinyViT of 5 million parameters.

Source: Zhang et al. 2023, "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications". The
body is timm's ``tiny_vit_5m_224``, with the published weights under its own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

_SIDE, _STRIDE, _WIDTH = 1024, 16, 256

# Published names -> timm's, whose stages begin with a downsampling that is published as the end of the stage
# before.
_RENAMED = (
    (r"\.c\.", r".conv."),
    (r"patch_embed\.seq\.0\.", r"patch_embed.conv1."),
    (r"patch_embed\.seq\.2\.", r"patch_embed.conv2."),
    (r"layers\.0\.downsample\.", r"stages.1.downsample."),
    (r"layers\.1\.downsample\.", r"stages.2.downsample."),
    (r"layers\.2\.downsample\.", r"stages.3.downsample."),
    (r"layers\.", r"stages."),
)
_CLASSIFIER = "image_encoder.norm_head.", "image_encoder.head."  # left over from its training


class TinyVitEncoder(nn.Module):
    """The image encoder; the name `img_size` is that of ``ImageEncoderViT``."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size = _SIDE
        body: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        self.patch_embed: nn.Module = body.patch_embed
        body.stages[3].downsample.conv2.conv.stride = (1, 1)  # SAM's decoder takes a map of stride 16
        self.stages: nn.Module = body.stages
        self.neck = nn.Sequential(
            nn.Conv2d(body.num_features, _WIDTH, kernel_size=1, bias=False),
            LayerNorm2d(_WIDTH),
            nn.Conv2d(_WIDTH, _WIDTH, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(_WIDTH),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Normalised pixels (B, 3, 1024, 1024) to embeddings (B, 256, 64, 64)."""
        embedding: Tensor = self.neck(self.stages(self.patch_embed(image)))
        return embedding


def build_mobile_sam() -> Sam:
    """Builds MobileSAM with random weights, in evaluation mode."""
    grid = _SIDE // _STRIDE
    sam = Sam(
        image_encoder=TinyVitEncoder(),
        prompt_encoder=PromptEncoder(_WIDTH, (grid, grid), (_SIDE, _SIDE), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=_WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=_WIDTH, num_heads=8, mlp_dim=2048),
        ),
    )
    return sam.eval()


def from_published(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames published weights (``mobile_sam.pt``) to the names of :func:`build_mobile_sam`'s model."""
    return {_renamed(name): value for name, value in weights.items() if not name.startswith(_CLASSIFIER)}


def _renamed(name: str) -> str:
    if name.startswith("image_encoder."):
        for published, ours in _RENAMED:
            name = re.sub(published, ours, name)
    return name
