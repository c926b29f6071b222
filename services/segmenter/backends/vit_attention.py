"""Attention of Segment Anything's ViT in one fused operation.

The published one writes scores, bias and softmax of a global layer one after the other: three times 805 MB an
image in ViT-B. Here the bias of relative positions is the one thing that is written, and the rest stays in
the kernel. Sums have another order, so that embeddings differ in the last bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention(nn.Module):
    """An ``segment_anything.modeling.image_encoder.Attention`` with its weights, fused.

    Args:
        attention: With relative positions.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.qkv: nn.Linear = attention.qkv
        self.proj: nn.Linear = attention.proj
        self.rel_pos_h: nn.Parameter = attention.rel_pos_h
        self.rel_pos_w: nn.Parameter = attention.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, h, w, C) to tokens of the same shape."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, _table(self.rel_pos_h, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, _table(self.rel_pos_w, width))
        bias = (rows[..., :, None] + columns[..., None, :]).flatten(4, 5).flatten(2, 3).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))
        return out


def _table(relative: Tensor, size: int) -> Tensor:
    """The embedding of the distance between each query's and each key's place, (size, size, C)."""
    places = torch.arange(size, device=relative.device)
    return relative[places[:, None] - places[None, :] + size - 1]


def fuse_attention(encoder: Any) -> None:
    """Replaces the attention of every block of an ``ImageEncoderViT`` whose tables fit its grid, as those of
    the published models do.
    """
    grid = encoder.img_size // encoder.patch_embed.proj.kernel_size[0]
    for block in encoder.blocks:
        side = block.window_size or grid
        if block.attn.use_rel_pos and len(block.attn.rel_pos_h) == len(block.attn.rel_pos_w) == 2 * side - 1:
            block.attn = FusedAttention(block.attn)
