"""The mask decoder's forward pass for many prompts of many images at once, as training needs it.

The stock ``MaskDecoder`` takes one image at a time and repeats its embedding for every prompt before the
first layer. Here what depends on the image alone is computed once per image: the first layer's keys and
values and the image's side of its second attention. Weights and results are those of the stock modules.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F


def decode_masks(
    sam: Sam, embeddings: Tensor, sparse: Tensor, dense: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masks and predicted IoU for P prompts on each of S images.

    Args:
        sam: the model.
        embeddings: (S, C, h, w) from the image encoder.
        sparse: (S * P, N, C) prompt tokens, the prompts of an image next to each other.
        dense: (S * P, C, h, w) embedded mask prompts; None stands for "no mask" everywhere, which is faster.

    Returns:
        Mask logits (S * P, 4, 4h, 4w), the single mask first and then the three of multimask, and predicted
        IoU (S * P, 4).
    """
    decoder, transformer = sam.mask_decoder, sam.mask_decoder.transformer
    prompts = len(sparse) // len(embeddings)
    height, width = embeddings.shape[-2:]
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(sparse), -1, -1), sparse], 1)
    place = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)
    if dense is None:
        keys = (
            (embeddings + sam.prompt_encoder.no_mask_embed.weight[..., None, None]).flatten(2).transpose(1, 2)
        )
    else:
        keys = (embeddings.repeat_interleave(prompts, 0) + dense).flatten(2).transpose(1, 2)

    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _attend(layer.self_attn, queries, queries, queries)
        else:
            placed = queries + tokens
            queries = queries + _attend(layer.self_attn, placed, placed, queries)
        queries = layer.norm1(queries)
        placed_keys = keys + place
        queries = layer.norm2(
            queries + _attend(layer.cross_attn_token_to_image, queries + tokens, placed_keys, keys)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        update = _attend(layer.cross_attn_image_to_token, placed_keys, queries + tokens, queries)
        if len(keys) < len(update):
            keys = keys.repeat_interleave(prompts, 0)
        keys = layer.norm4(keys + update)
    attended = _attend(transformer.final_attn_token_to_image, queries + tokens, keys + place, keys)
    queries = transformer.norm_final_attn(queries + attended)

    heads = enumerate(decoder.output_hypernetworks_mlps)
    weights = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in heads], 1)
    first, norm, activation, second, last_activation = decoder.output_upscaling
    fine = activation(F.layer_norm(_double(keys, first), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    fine = last_activation(_double(fine, second))
    masks = torch.einsum("bmc,bnijc->bmnij", weights, fine)
    # From cell, quarter, quarter of the quarter to rows and columns.
    masks = masks.reshape(*masks.shape[:2], height, width, 2, 2, 2, 2)
    masks = masks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(len(masks), -1, 4 * height, 4 * width)
    return masks, decoder.iou_prediction_head(queries[:, 0])


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An attention module; an image's side that comes once per image is repeated after its projection."""
    q, k, v = attention.q_proj(q), attention.k_proj(k), attention.v_proj(v)
    batch = max(len(q), len(k))
    q, k, v = (_split(x, batch, attention.num_heads) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), -1)
    mixed: Tensor = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return mixed


def _double(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """A stride-2 transposed convolution with 2 x 2 kernel on channels-last cells, which is a matrix product.

    Args:
        x: (..., C).
        convolution: from C to D channels.

    Returns:
        (..., 4, D), the four children of a cell row by row.
    """
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert convolution.bias is not None
    children = F.linear(x, weight, convolution.bias.repeat(4))
    return children.reshape(*x.shape[:-1], 4, -1)


def _split(x: Tensor, batch: int, heads: int) -> Tensor:
    x = x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    return x if len(x) == batch else x.repeat_interleave(batch // len(x), 0)
