"""From the name of a model to its files."""

from __future__ import annotations

from pathlib import Path

from regionsearch.models import pocket_dir
from services.embedder.backends.base import ModelFiles
from services.embedder.open_clip_files import find_open_clip
from services.torch_runtime.model_files import read_manifest, verified_digest


def find_model(model: str, weights: Path | None = None, random_weights: bool = False) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, the path of an ``embedder.json``, or what
            :func:`services.embedder.open_clip_files.find_open_clip` takes.
        weights: Weights file of an open_clip model that was not pulled with `regionsearch models pull`.
        random_weights: Do not load weights.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for no file, DATA_LOSS when a file
            is not what its manifest says or what was downloaded.
    """
    if model == "pocket":
        return _from_manifest(pocket_dir() / "embedder.json", random_weights)
    if model.endswith(".json"):
        return _from_manifest(Path(model), random_weights)
    if (Path(model) / "embedder.json").is_file():
        return _from_manifest(Path(model) / "embedder.json", random_weights)
    return find_open_clip(model, weights, random_weights)


def _from_manifest(path: Path, random_weights: bool) -> ModelFiles:
    manifest = read_manifest(path, "embedder", ("family", "variant", "model_config", "preprocess", "sha256"))
    described = manifest["family"], manifest["variant"], manifest["model_config"], manifest["preprocess"]
    if random_weights:
        return ModelFiles(*described, None)
    weights = path.with_suffix(".safetensors")
    digest = verified_digest(weights, path, manifest["sha256"])
    return ModelFiles(*described, weights, manifest.get("same_as", digest))
