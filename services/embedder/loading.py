"""From the name of a model to its files, and from a device's name to devices."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.models import WEIGHTS, checked_digest, file_digest, find, pocket_dir
from services.embedder.backends.base import ModelFiles


def find_model(model: str, weights: Path | None = None, random_weights: bool = False) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, a name of open_clip's (``ViT-B-32``, or ``ViT-B-32/laion2b_s34b_b79k`` to be exact
            about the weights), or the path of an ``embedder.json``.
        weights: Weights of an open_clip model that are not where `regionsearch models pull` puts them.
        random_weights: Take none.

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
        path = _existing(
            weights, "weights", "give the path of a file, or leave it out to take pulled weights"
        )
        return ModelFiles("open_clip", name, config, preprocess, path, file_digest(path))
    published = WEIGHTS.get(name)
    if published is None or tag not in published.file:
        raise invalid(
            "weights",
            f"only the weights of ViT-B-32 and ViT-H-14 are looked up; say where those of {model} are",
        )
    return ModelFiles("open_clip", name, config, preprocess, find(published), checked_digest(published))


def _from_manifest(path: Path, random_weights: bool) -> ModelFiles:
    remedy = "give the path of an embedder.json, or install regionsearch again for the bundled one"
    try:
        manifest = json.loads(_existing(path, "model", remedy).read_text())
        parts = manifest["family"], manifest["variant"], manifest["model_config"], manifest["preprocess"]
        expected = manifest["sha256"]
        known_by = manifest.get("same_as", expected)
    except (ValueError, KeyError, TypeError) as error:
        raise RegionSearchError(
            Kind.DATA_LOSS, f"{path} is not a manifest of an embedder ({error!r}); {remedy}", field="model"
        ) from error
    if random_weights:
        return ModelFiles(*parts, None)
    weights = _existing(path.with_suffix(".safetensors"), "model", f"it belongs beside {path.name}")
    digest = file_digest(weights)
    if digest != expected:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"the weights in {weights} are not those that {path.name} describes (SHA-256 {digest[:12]}…, not "
            f"{expected[:12]}…); restore both files together",
            field="model",
        )
    return ModelFiles(*parts, weights, known_by)


def _existing(path: Path, field: str, remedy: str) -> Path:
    if not path.is_file():
        raise not_found(field, f"{path} is not there; {remedy}")
    return path


def find_devices(names: str) -> list[torch.device]:
    """The devices to work on.

    Args:
        names: ``auto``, or devices as torch names them, separated by commas.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a device that is not there.
    """
    if names == "auto":
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    try:
        devices = [torch.device(name.strip()) for name in names.split(",")]
        for device in devices:
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise invalid("device", f"{names!r} cannot be used: {str(error).splitlines()[0]}") from error
    return devices


def choose_precision(precision: str, device: torch.device) -> str:
    """What ``auto`` means on a device."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
