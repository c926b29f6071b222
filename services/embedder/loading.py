"""From the name of a model to its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.models import pocket_dir
from services.embedder.backends.base import ModelFiles
from services.embedder.crops import CropPolicy
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
    return ModelFiles(
        *described, weights, manifest.get("same_as", digest), cut_offs=read_cut_offs(path, manifest)
    )


def read_cut_offs(path: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """The cut-offs of a manifest by crop policy; none where the model was not calibrated.

    Raises:
        RegionSearchError: DATA_LOSS when they are not cosines of known crop policies.
    """
    try:
        found = {CropPolicy(name).value: float(score) for name, score in manifest.get("cut_offs", {}).items()}
        wrong = [f"{name}: {score}" for name, score in found.items() if not -1.0 <= score <= 1.0]
    except (AttributeError, TypeError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"{path}: cut_offs are not valid ({wrong[0]}); measure them: regionsearch evaluate --calibrate",
            field="model",
        )
    return found
