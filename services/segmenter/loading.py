"""From the name of a model to its files."""

from __future__ import annotations

from pathlib import Path

from regionsearch.errors import invalid
from regionsearch.models import WEIGHTS, checked_digest, file_digest, find, pocket_dir
from services.segmenter.backends.base import ModelFiles
from services.torch_runtime.model_files import existing_file, read_manifest, verified_digest

# Name of a model -> family, variant.
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
            checkpoint whose file name contains the name of its architecture, such as ``my_sam_vit_b.pth``.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for a missing file, DATA_LOSS when
            a file does not have the digest that its manifest or its publisher states.
    """
    if model == "pocket":
        return _from_manifest(pocket_dir() / "segmenter.json")
    if model in CHECKPOINTS:
        return _from_checkpoint(model, find(WEIGHTS[model]), checked_digest(WEIGHTS[model]))
    path = Path(model)
    if path.suffix == ".json":
        return _from_manifest(path)
    for name in CHECKPOINTS:
        if path.suffix and name in path.name:
            existing_file(path, "model", "give the path of a checkpoint, or the name of a model")
            return _from_checkpoint(name, path, file_digest(path))
    raise invalid(
        "model",
        f"{model!r} is not a model; give pocket, {', '.join(CHECKPOINTS)}, the path of a segmenter.json, or "
        "the path of a checkpoint whose file name contains one of these names",
    )


def _from_manifest(path: Path) -> ModelFiles:
    manifest = read_manifest(path, "segmenter", ("family", "variant", "architecture", "sha256"))
    weights = path.with_suffix(".safetensors")
    return ModelFiles(
        manifest["family"],
        manifest["variant"],
        weights,
        verified_digest(weights, path, manifest["sha256"]),
        manifest["architecture"],
        manifest.get("everything", {}),
        bool(manifest.get("zoom", False)),
    )


def _from_checkpoint(name: str, path: Path, digest: str) -> ModelFiles:
    family, variant = CHECKPOINTS[name]
    return ModelFiles(family, variant, path, digest, {}, {})
