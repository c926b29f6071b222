"""The lazy decoder against segment_anything's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from services.segmenter.backends.sam_decoder import LazyMaskDecoder


def build(width: int, side: int, heads: int, depth: int = 2) -> Sam:
    torch.manual_seed(width + heads)
    encoder = nn.Identity()
    encoder.img_size = 8 * side
    transformer = TwoWayTransformer(depth, width, heads, mlp_dim=2 * width)
    return Sam(
        encoder,
        PromptEncoder(width, (side, side), (8 * side, 8 * side), mask_in_chans=16),
        MaskDecoder(transformer_dim=width, transformer=transformer),
    ).eval()


def both(sam: Sam, sparse: Tensor, dense: Tensor, lazy_dense: Tensor) -> tuple[Tensor, ...]:
    """Masks and qualities of the reference, masks and qualities of ours; all four tokens."""
    side = sam.prompt_encoder.image_embedding_size[0]
    features = torch.randn(1, sam.prompt_encoder.embed_dim, side, side)
    with torch.inference_mode():
        masks, ious = sam.mask_decoder.predict_masks(
            features, sam.prompt_encoder.get_dense_pe(), sparse, dense
        )
        decoded = LazyMaskDecoder(sam)(features[0], sparse, lazy_dense)
        rows, columns = (
            part.flatten()
            for part in torch.meshgrid(torch.arange(len(sparse)), torch.arange(4), indexing="ij")
        )
        logits = decoded.logits(rows, columns).view(masks.shape)
    return masks, ious, logits, decoded.ious


@pytest.mark.parametrize(("width", "side", "heads"), [(64, 8, 8), (128, 16, 4), (256, 16, 8)])
@pytest.mark.parametrize("points", [1, 3])
def test_points_give_the_reference_masks(width: int, side: int, heads: int, points: int) -> None:
    sam = build(width, side, heads)
    coords, labels = torch.rand(5, points, 2) * 8 * side, torch.randint(0, 2, (5, points))
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder((coords, labels), None, None)
        shared = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
    masks, ious, our_masks, our_ious = both(sam, sparse, dense, shared)
    torch.testing.assert_close(our_masks, masks, rtol=0, atol=2e-6)
    torch.testing.assert_close(our_ious, ious, rtol=0, atol=2e-6)


def test_boxes_with_points_and_masks_give_the_reference_masks() -> None:
    sam = build(64, 8, 4)
    coords, labels = torch.rand(3, 2, 2) * 64, torch.ones(3, 2)
    boxes = torch.tensor([[4.0, 4, 40, 50]]).repeat(3, 1)
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder((coords, labels), boxes, torch.randn(3, 1, 32, 32))
    masks, ious, our_masks, our_ious = both(sam, sparse, dense, dense)
    torch.testing.assert_close(our_masks, masks, rtol=0, atol=2e-6)
    torch.testing.assert_close(our_ious, ious, rtol=0, atol=2e-6)


def test_deeper_transformers_are_followed() -> None:
    sam = build(64, 8, 8, depth=3)
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder((torch.rand(2, 1, 2) * 64, torch.ones(2, 1)), None, None)
        shared = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
    masks, ious, our_masks, our_ious = both(sam, sparse, dense, shared)
    torch.testing.assert_close(our_masks, masks, rtol=0, atol=2e-6)
    torch.testing.assert_close(our_ious, ious, rtol=0, atol=2e-6)


def test_only_the_masks_asked_for_are_made() -> None:
    sam = build(64, 8, 8)
    with torch.inference_mode():
        sparse, _ = sam.prompt_encoder((torch.rand(4, 1, 2) * 64, torch.ones(4, 1)), None, None)
        features = torch.randn(64, 8, 8)
        decoded = LazyMaskDecoder(sam)(
            features, sparse, sam.prompt_encoder.no_mask_embed.weight[..., None, None]
        )
        every = decoded.logits(torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4))
        some = decoded.logits(torch.tensor([1, 1, 3]), torch.tensor([0, 2, 3]))
        none = decoded.logits(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    torch.testing.assert_close(some, every[[4, 6, 15]], rtol=0, atol=1e-6)
    assert none.shape == (0, 32, 32)


def test_windows_hold_the_logits_of_the_whole_mask() -> None:
    sam = build(64, 8, 8)
    windows = np.array([[0, 9, 3, 21], [30, 32, 0, 5], [8, 16, 8, 16], [0, 32, 0, 32]])
    with torch.inference_mode():
        sparse, _ = sam.prompt_encoder((torch.rand(4, 1, 2) * 64, torch.ones(4, 1)), None, None)
        features = torch.randn(64, 8, 8)
        decoded = LazyMaskDecoder(sam)(
            features, sparse, sam.prompt_encoder.no_mask_embed.weight[..., None, None]
        )
        rows, columns = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 3, 1])  # nothing of the last prompt
        every = decoded.logits(rows, columns)
        some = decoded.logits(rows, columns, windows)
    assert some.shape == every.shape
    for ours, mask, (top, bottom, left, right) in zip(some, every, windows[rows], strict=True):
        seen = slice(top, bottom), slice(left, right)
        torch.testing.assert_close(ours[seen], mask[seen], rtol=0, atol=1e-6)
    assert (some[3, 20:] < -9).all()  # windows are as high as the highest
