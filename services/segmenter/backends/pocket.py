"""The pocket segmenter: Segment Anything's own prompt encoder and mask decoder behind a light image encoder.

As in MobileSAM and EfficientViT-SAM only the image encoder differs from the original, so that
``segment_anything.SamPredictor`` and ``SamAutomaticMaskGenerator`` work on it unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from services.segmenter.backends.proposer import ProposalHead
from services.segmenter.backends.pyramid import STRIDE, Pyramid, convolution
from services.segmenter.backends.refiner import RefinerNet


class PyramidEncoder(Pyramid):
    """An image encoder that ends in one map of stride 8.

    Outlines finer than a cell have to reach the mask decoder through its channels: the maps of strides 4 and
    2 are folded into the map of stride 8.

    Args:
        body: name of a timm model with features at strides 4, 8, 16 and 32.
        width: channels of the image embedding.
        detail: channels of the map of stride 4.
        outline: channels of the map of stride 2.
        img_size: side of the square input in pixels; the name is that of ``ImageEncoderViT``.
    """

    def __init__(self, body: str, width: int, detail: int, outline: int, img_size: int) -> None:
        super().__init__(body, width, detail, outline)
        self.img_size = img_size
        self.fold = nn.Conv2d(self.depths[0] + detail, width, kernel_size=2, stride=2)
        self.fold_outline = nn.Conv2d(outline, width, kernel_size=4, stride=4)
        self.mix = nn.Sequential(convolution(width, width), nn.Conv2d(width, width, kernel_size=1))
        self.norm = LayerNorm2d(width)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised pixels (B, 3, side, side) to embeddings (B, width, side / 8, side / 8)."""
        maps = self.maps(image)
        mixed = self.mix(maps.coarse + self.fold(torch.cat([maps.fine, maps.detail], 1)))
        embedding: Tensor = self.norm(mixed + self.fold_outline(maps.outline))
        return embedding


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
    refiner: Mapping[str, Any] | None = None,
    proposer: Mapping[str, Any] | None = None,
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
        refiner: architecture of the model's :class:`RefinerNet`; None for a model without one.
        proposer: architecture of the model's :class:`ProposalHead`; None for a model without one.

    Raises:
        ValueError: ``img_size`` is not a multiple of 32, or ``width`` not one of ``8 * heads``.
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
            # Half the time of GELU on the largest maps, and nothing allocated.
            activation=functools.partial(nn.ReLU, inplace=True),
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )
    if refiner is not None:
        sam.refiner = RefinerNet(**refiner)
    if proposer is not None:
        sam.proposer = ProposalHead(**proposer)
    return sam.eval()
