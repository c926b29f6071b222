"""Finds the files of a model by its name or path."""

from __future__ import annotations

from pathlib import Path

from regionsearch.errors import Kind, RegionSearchError, invalid
from regionsearch.models.catalog import WEIGHTS
from regionsearch.models.store import checked_digest, file_digest, find, find_repository, pocket_dir
from services.segmenter.backends.base import ModelFiles
from services.segmenter.backends.checkpoints import recognise_file
from services.segmenter.backends.fastsam import EVERYTHING
from services.segmenter.backends.hugging_face import CONFIG, WEIGHTS_FILE, family_of
from services.torch_runtime.model_files import (
    SUFFIXES,
    existing_file,
    only_weights_file,
    read_manifest,
    verified_digest,
)

# Model name -> family, variant.
CHECKPOINTS = {
    "sam_vit_b": ("sam", "vit_b"),
    "sam_vit_l": ("sam", "vit_l"),
    "sam_vit_h": ("sam", "vit_h"),
    "mobile_sam": ("sam", "mobile"),
    "sam2.1_hiera_tiny": ("sam2", "sam2.1_hiera_t"),
    "sam2.1_hiera_small": ("sam2", "sam2.1_hiera_s"),
    "sam2.1_hiera_base_plus": ("sam2", "sam2.1_hiera_b+"),
    "sam2.1_hiera_large": ("sam2", "sam2.1_hiera_l"),
}

# Names of models whose configuration, and tokenizer, comes with their weights.
FOLDERS = ("sam3", "sam_hq_vit_b", "sam_hq_vit_l", "sam_hq_vit_h")


def find_model(model: str) -> ModelFiles:
    """Finds the files of a model.

    Args:
        model: ``pocket``, a name of :data:`CHECKPOINTS` or :data:`FOLDERS`, or a path: of a
            ``segmenter.json``, of a checkpoint, of a folder with one of these, or of one in the layout of the
            Hugging Face hub. A checkpoint's architecture is the one that its file name contains, as
            ``my_sam_vit_b.pth`` does, or else is recognised by its tensors. An ``.onnx`` file is FastSAM.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for a missing file, DATA_LOSS when
            a file does not have the digest that its manifest or its publisher states, or is not a model.
    """
    if model == "pocket":
        return _from_manifest(pocket_dir() / "segmenter.json")
    if model in CHECKPOINTS:
        return _from_checkpoint(model, find(WEIGHTS[model]), checked_digest(WEIGHTS[model]))
    if model in FOLDERS:
        weights = WEIGHTS[model]
        file, digest = find(weights), checked_digest(weights)
        return _from_folder(find_repository(weights), model, file, digest)
    path = Path(model).expanduser()
    if path.suffix == ".onnx":
        existing_file(path, "model", "export it as docs/models.md describes")
        return ModelFiles("fastsam", path.stem, path, file_digest(path), {}, EVERYTHING, "proposals")
    if path.is_dir():
        manifest = path / "segmenter.json"
        if not manifest.is_file() and (path / CONFIG).is_file():
            file = existing_file(path / WEIGHTS_FILE, "model", f"it belongs next to {CONFIG}")
            return _from_folder(path, path.name, file, file_digest(file))
        path = manifest if manifest.is_file() else only_weights_file(path)
    if path.suffix == ".json":
        return _from_manifest(path)
    if path.suffix in SUFFIXES:
        existing_file(path, "model", "give the path of a checkpoint, or the name of a model")
        name = next((name for name in CHECKPOINTS if name in path.name), None) or recognise_file(path)
        if name is None:
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{path} does not hold the weights of a segmenter that is known; give one of "
                f"{', '.join(CHECKPOINTS)}, or of the same architecture",
                field="model",
            )
        return _from_checkpoint(name, path, file_digest(path))
    raise invalid(
        "model",
        f"{model!r} is not a model; give pocket, {', '.join((*CHECKPOINTS, *FOLDERS))}, or the path of a "
        "checkpoint, of a segmenter.json, of a folder with one of these, of a folder as it is on the Hugging "
        "Face hub, or of FastSAM's .onnx file",
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
        manifest.get("mode", "grid"),
        bool(manifest.get("zoom", False)),
        manifest.get("match_rates", {}),
    )


def _from_checkpoint(name: str, path: Path, digest: str) -> ModelFiles:
    family, variant = CHECKPOINTS[name]
    return ModelFiles(family, variant, path, digest, {}, {})


def _from_folder(folder: Path, variant: str, weights: Path, digest: str) -> ModelFiles:
    return ModelFiles(family_of(folder), variant, weights, digest, {}, {}, folder=folder)
