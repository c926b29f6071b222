"""Small models with random weights in folders as they are on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIDE = 112  # of the encoder's input
_VISION: dict[str, Any] = {
    "model_type": "sam3_vision_model",
    "backbone_config": {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14, "window_size": 4,
        "global_attn_indexes": [1], "pretrain_image_size": 56,
    },
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}  # fmt: skip
_LAYER = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
_DECODER = {
    "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32, "vit_dim": 32,
}  # fmt: skip
_TEXT = {
    "model_type": "clip_text_model", "vocab_size": 600, "hidden_size": 32, "intermediate_size": 64,
    "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
    "hidden_act": "gelu",
}  # fmt: skip


def write_sam3(folder: Path) -> Path:
    """A SAM 3: the state of the video model, whose names are those of the published file, and a tokenizer."""
    from transformers import CLIPTokenizer, Sam3VideoConfig, Sam3VideoModel

    detector = {
        "model_type": "sam3", "vision_config": _VISION, "text_config": _TEXT,
        "geometry_encoder_config": _LAYER,
        "detr_encoder_config": _LAYER, "detr_decoder_config": _LAYER | {"num_queries": 12},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }  # fmt: skip
    tracker = {
        "model_type": "sam3_tracker_video", "vision_config": _VISION, "image_size": SIDE,
        "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE, "patch_size": 14},
        "mask_decoder_config": {name: value for name, value in _DECODER.items() if name != "vit_dim"},
        "memory_attention_hidden_size": 32, "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64, "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16, "mask_downsampler_embed_dim": 32, "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 64, "memory_fuser_num_layers": 1,
        "memory_attention_rope_feat_sizes": [8, 8],
    }  # fmt: skip
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker)
    folder = _write(folder, config, Sam3VideoModel(config))
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def write_sam_hq(folder: Path) -> Path:
    """A SAM-HQ."""
    from transformers import SamHQConfig, SamHQModel

    config = SamHQConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 14, "window_size": 4, "global_attn_indexes": [0, 1],
            "num_pos_feats": 16, "mlp_dim": 64, "initializer_range": 0.02,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 14},
        mask_decoder_config=_DECODER,
    )  # fmt: skip
    return _write(folder, config, SamHQModel(config))


def _write(folder: Path, config: Any, model: Any) -> Path:
    folder.mkdir()
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():  # much is initialised as zero, which would hide mistakes
        noise = torch.randn(tensor.shape, generator=generator) * 0.2
        state[name] = (tensor + noise if tensor.is_floating_point() else tensor).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
