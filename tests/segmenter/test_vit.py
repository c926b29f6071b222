"""The published architectures at full size, with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT

from services.segmenter.backends.base import ModelIdentity, PromptBatch
from services.segmenter.backends.sam import SamBackend
from services.segmenter.backends.vit_attention import FusedAttention, fuse_attention
from services.segmenter.options import EverythingOptions
from tests.segmenter.parity import assert_parity


@torch.inference_mode()
def test_fused_attention_gives_the_same_embedding() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=128, embed_dim=48, depth=3, num_heads=4, out_chans=16, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,),
    )  # fmt: skip
    for name, value in encoder.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(value)
    image = torch.randn(2, 3, 128, 128)
    published = encoder(image)
    fuse_attention(encoder)
    assert all(isinstance(block.attn, FusedAttention) for block in encoder.blocks)
    torch.testing.assert_close(encoder(image), published, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vit_b_has_its_shapes_and_gives_the_reference_answer(coffee: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    backend = SamBackend(sam_model_registry["vit_b"](), ModelIdentity("sam", "vit_b", "", "fp32", "cpu"))
    assert backend.mask_size == (256, 256)
    pixels, geometry = backend.prepare(coffee)
    assert pixels.shape == (3, 683, 1024)
    assert geometry.padded_size == (1024, 1024)
    (embedding,) = backend.encode([(pixels, geometry)])
    assert [part.shape for part in embedding.features] == [(256, 64, 64)]
    assert embedding.nbytes == 256 * 64 * 64 * 4
    points = torch.rand(3, 2, 2) * 600
    decoding = backend.decode(embedding, PromptBatch(points, torch.ones(3, 2, dtype=torch.int32)))
    assert decoding.ious.shape == (3, 4)
    rows, columns = torch.tensor([0, 0, 2]), torch.tensor([0, 3, 1])
    assert decoding.logits(rows, columns).shape == (3, 256, 256)

    options = EverythingOptions(2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.95)
    assert assert_parity(backend, coffee, options)
