"""From the name of a model to its files, and from a device's name to the device."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.models import WEIGHTS, file_digest, find, pocket_dir
from services.segmenter.backends.base import ModelFiles

# What a model is called -> family, variant.
CHECKPOINTS = {
    "sam_vit_b": ("sam", "vit_b"),
    "sam_vit_l": ("sam", "vit_l"),
    "sam_vit_h": ("sam", "vit_h"),
    "sam2.1_hiera_tiny": ("sam2", "sam2.1_hiera_t"),
    "sam2.1_hiera_small": ("sam2", "sam2.1_hiera_s"),
    "sam2.1_hiera_base_plus": ("sam2", "sam2.1_hiera_b+"),
    "sam2.1_hiera_large": ("sam2", "sam2.1_hiera_l"),
}


def find_model(model: str) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, a name of :data:`CHECKPOINTS`, or a path: of a ``segmenter.json``, or of a
            checkpoint whose name contains that of its architecture, such as ``my_sam_vit_b.pth``.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for no file, DATA_LOSS when a
            file is not what its manifest or its publisher says.
    """
    if model == "pocket":
        return _from_manifest(pocket_dir() / "segmenter.json")
    if model in CHECKPOINTS:
        return _from_checkpoint(model, find(WEIGHTS[model]), WEIGHTS[model].sha256)
    path = Path(model)
    if path.suffix == ".json":
        return _from_manifest(path)
    for name in CHECKPOINTS:
        if path.suffix and name in path.name:
            return _from_checkpoint(name, path, None)
    raise invalid(
        "model",
        f"{model!r} is not a model; give pocket, {', '.join(CHECKPOINTS)}, the path of a segmenter.json, or "
        "of a checkpoint with one of these names in its own",
    )


def _from_manifest(path: Path) -> ModelFiles:
    try:
        manifest = json.loads(_existing(path).read_text())
        family, variant, architecture = manifest["family"], manifest["variant"], manifest["architecture"]
        expected = manifest["sha256"]
        everything, zoom = manifest.get("everything", {}), bool(manifest.get("zoom", False))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{path} is not a manifest of a segmenter ({error!r}); give the path of a segmenter.json, or "
            "install regionsearch again for the bundled one",
            field="model",
        ) from error
    weights = path.with_suffix(".safetensors")
    return ModelFiles(family, variant, weights, _digest(weights, expected), architecture, everything, zoom)


def _from_checkpoint(name: str, path: Path, published: str | None) -> ModelFiles:
    family, variant = CHECKPOINTS[name]
    return ModelFiles(family, variant, path, _digest(path, published), {}, {})


def _digest(path: Path, expected: str | None) -> str:
    digest = file_digest(_existing(path))
    if expected is not None and digest != expected:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{path} is damaged or another file: its SHA-256 is {digest[:12]}…, not {expected[:12]}…; "
            "get it again with `regionsearch models pull`, the bundled one with the package",
            field="model",
        )
    return digest


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise not_found("model", f"{path} is not there; give the path of a file, or the name of a model")
    return path


def find_device(name: str) -> str:
    """The device to work on, as torch names it.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a device that is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.empty(1, device=name).device.type
    except (RuntimeError, AssertionError) as error:
        raise invalid("device", f"{name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if kind not in ("cpu", "cuda"):
        raise invalid("device", f"{name!r} cannot be used; give auto, cpu, cuda or cuda:N")
    return name
