"""From the name of a model to its files."""

from __future__ import annotations

from pathlib import Path

import open_clip

from regionsearch.errors import invalid
from regionsearch.models import WEIGHTS, checked_digest, file_digest, find, pocket_dir
from services.embedder.backends.base import ModelFiles
from services.torch_runtime.model_files import existing_file, read_manifest, verified_digest


def find_model(model: str, weights: Path | None = None, random_weights: bool = False) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, a name of open_clip's (``ViT-B-32``, or ``ViT-B-32/laion2b_s34b_b79k`` to be exact
            about the weights), or the path of an ``embedder.json``.
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
    name, _, tag = model.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        known = "pocket, ViT-B-32, ViT-H-14 or another name of open_clip's"
        raise invalid("model", f"{name!r} is not a model; give {known}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise invalid("model", f"{name} has no weights {tag!r}; there are {', '.join(tags) or 'none'}")
    preprocess = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if random_weights:
        return ModelFiles("open_clip", name, config, preprocess, None)
    if weights is not None:
        existing_file(weights, "weights", "give the path of a file, or omit it to use pulled weights")
        return ModelFiles("open_clip", name, config, preprocess, weights, file_digest(weights))
    published = WEIGHTS.get(name)
    if published is None or tag not in published.file:
        raise invalid(
            "weights",
            f"only the weights of ViT-B-32 and ViT-H-14 are looked up; say where those of {model} are",
        )
    return ModelFiles("open_clip", name, config, preprocess, find(published), checked_digest(published))


def _from_manifest(path: Path, random_weights: bool) -> ModelFiles:
    manifest = read_manifest(path, "embedder", ("family", "variant", "model_config", "preprocess", "sha256"))
    described = manifest["family"], manifest["variant"], manifest["model_config"], manifest["preprocess"]
    if random_weights:
        return ModelFiles(*described, None)
    weights = path.with_suffix(".safetensors")
    digest = verified_digest(weights, path, manifest["sha256"])
    return ModelFiles(*described, weights, manifest.get("same_as", digest))
