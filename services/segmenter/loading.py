"""From the name of a model to its files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError, invalid
from services.segmenter.backends.base import ModelFiles

# Name -> family, variant, file, as their authors publish them.
CHECKPOINTS = {
    "sam_vit_b": ("sam", "vit_b", "sam_vit_b_01ec64.pth"),
    "sam_vit_l": ("sam", "vit_l", "sam_vit_l_0b3195.pth"),
    "sam_vit_h": ("sam", "vit_h", "sam_vit_h_4b8939.pth"),
    "sam2.1_hiera_tiny": ("sam2", "sam2.1_hiera_t", "sam2.1_hiera_tiny.pt"),
    "sam2.1_hiera_small": ("sam2", "sam2.1_hiera_s", "sam2.1_hiera_small.pt"),
    "sam2.1_hiera_base_plus": ("sam2", "sam2.1_hiera_b+", "sam2.1_hiera_base_plus.pt"),
    "sam2.1_hiera_large": ("sam2", "sam2.1_hiera_l", "sam2.1_hiera_large.pt"),
}


def find_model(model: str) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, a name of :data:`CHECKPOINTS`, or a path: of a ``segmenter.json``, or of a
            checkpoint whose name contains that of its architecture, such as ``my_sam_vit_b.pth``.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for no file, DATA_LOSS when a
            file is not what its manifest says.
    """
    if model == "pocket":
        return _from_manifest(_pocket_folder() / "segmenter.json")
    if model in CHECKPOINTS:
        family, variant, file = CHECKPOINTS[model]
        return _from_checkpoint(family, variant, _models_dir() / file)
    path = Path(model)
    if path.suffix == ".json":
        return _from_manifest(path)
    for name, (family, variant, file) in CHECKPOINTS.items():
        if path.suffix and (name in path.name or path.name == file):
            return _from_checkpoint(family, variant, path)
    raise invalid(
        "model",
        f"{model!r} is no model; give pocket, {', '.join(CHECKPOINTS)}, the path of a segmenter.json, or "
        "of a checkpoint with one of these names in its own",
    )


def _from_manifest(path: Path) -> ModelFiles:
    manifest = json.loads(_existing(path).read_text())
    weights = path.with_suffix(".safetensors")
    digest = _sha256(_existing(weights))
    if digest != manifest["sha256"]:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"the weights in {weights} are not those that {path.name} describes (SHA-256 {digest[:12]}…, not "
            f"{manifest['sha256'][:12]}…); restore both files together",
            field="model",
        )
    return ModelFiles(
        manifest["family"],
        manifest["variant"],
        weights,
        digest,
        manifest["architecture"],
        manifest.get("everything", {}),
    )


def _from_checkpoint(family: str, variant: str, path: Path) -> ModelFiles:
    return ModelFiles(family, variant, path, _sha256(_existing(path)), {}, {})


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    raise RegionSearchError(
        Kind.NOT_FOUND,
        f"{path} does not exist; `regionsearch models pull base` (or large) downloads Segment Anything's "
        "weights into REGIONSEARCH_MODELS_DIR",
        field="model",
    )


def _models_dir() -> Path:
    return Path(os.environ.get("REGIONSEARCH_MODELS_DIR", Path.home() / ".cache" / "regionsearch" / "models"))


def _pocket_folder() -> Path:
    import regionsearch

    packaged = Path(regionsearch.__path__[0]) / "models" / "pocket"
    return packaged if packaged.is_dir() else packaged.parents[2] / "models" / "pocket"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
