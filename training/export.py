"""Writes trained weights as the services read them: fp16 safetensors and a JSON manifest with the digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from services.embedder.backends.open_clip import pack_rows, unpack_rows
from services.embedder.crops import CLIP_MEAN, CLIP_STD

_LARGEST_VARIANCE = 2.0**15  # half of what half precision can hold
_ADDED = ("match_rates", "cut_offs", "graph_sha256")  # to a manifest, after training


def export_segmenter(
    sam: nn.Module, architecture: dict[str, Any], everything: dict[str, Any], folder: Path
) -> None:
    """Writes ``segmenter.safetensors`` and ``segmenter.json``, whose prompts zoom by default.

    Everything mode asks the proposer where there is one.

    Args:
        sam: the trained :class:`segment_anything.modeling.Sam`, with its refiner and proposer where it has
            them.
        architecture: what it was built with, see :func:`services.segmenter.backends.pocket.build_pocket_sam`.
        everything: the options of everything mode that suit these weights.
        folder: where both files go.
    """
    manifest = {
        "family": "sam",
        "variant": "pocket",
        "architecture": architecture,
        "everything": everything,
        "mode": "proposals" if "proposer" in architecture else "grid",
        "zoom": True,
    }
    _write(sam, manifest, folder / "segmenter.safetensors")


def export_embedder(clip: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Writes ``embedder.safetensors`` and ``embedder.json``.

    Args:
        clip: the trained :class:`open_clip.CLIP`.
        config: its open_clip model config.
        folder: where both files go.
    """
    manifest = {
        "family": "open_clip",
        "variant": "pocket",
        "model_config": config,
        "preprocess": {
            "mean": list(CLIP_MEAN),
            "std": list(CLIP_STD),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    _write(clip, manifest, folder / "embedder.safetensors", packed="token_embedding.weight")


def load_weights(module: nn.Module, file: Path) -> None:
    """Reads exported weights into a module of the same architecture, as fp32."""
    module.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in unpack_rows(load_file(file)).items()
        }
    )


@torch.no_grad()
def fit_half(module: nn.Module) -> None:
    """Brings variances within half precision that are beyond it, in place.

    A convolution is scaled down by a power of two, channel by channel; the batch normalisation right after it
    in an ``nn.Sequential`` makes up for that, so that the module computes the same.
    """
    for block in module.modules():
        if not isinstance(block, nn.Sequential) or len(block) < 2:
            continue
        convolution, norm = block[0], block[1]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            scale = 0.5 ** (norm.running_var / _LARGEST_VARIANCE).log2().div(2).ceil().clamp(min=0)
            convolution.weight *= scale[:, None, None, None]
            if convolution.bias is not None:
                convolution.bias *= scale
            norm.running_mean *= scale
            norm.running_var *= scale.square()


def _write(module: nn.Module, manifest: dict[str, Any], file: Path, packed: str | None = None) -> None:
    """Writes both files; of the table of the name `packed` only the rows that are not zero."""
    fit_half(module)
    weights = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    if not all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point()):
        raise ValueError(f"{file.name}: a weight is infinite or not a number in half precision")
    if packed is not None:
        weights = pack_rows(weights, packed)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = save(weights)
    file.write_bytes(content)  # `save_file` would make a file that only its owner can read
    described = file.with_suffix(".json")
    before = json.loads(described.read_text()) if described.exists() else {}
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    if before.get("sha256") == manifest["sha256"]:  # what was found out of these weights is still true
        manifest |= {key: before[key] for key in _ADDED if key in before}
    described.write_text(json.dumps(manifest, indent=2) + "\n")
