"""From the name of a model to its files, and from a device's name to devices."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from regionsearch.errors import Kind, RegionSearchError, invalid
from services.embedder.backends.base import ModelFiles

# Name -> file of the published weights, as `regionsearch models pull` names it.
CHECKPOINTS = {
    "ViT-B-32": "open_clip_vit_b_32_laion2b_s34b_b79k.safetensors",
    "ViT-H-14": "open_clip_vit_h_14_laion2b_s32b_b79k.safetensors",
}


def find_model(model: str, weights: Path | None = None, random_weights: bool = False) -> ModelFiles:
    """The files of a model.

    Args:
        model: ``pocket``, a name of open_clip's, or the path of an ``embedder.json``.
        weights: Weights of an open_clip model that are not where `regionsearch models pull` puts them.
        random_weights: Take none.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name, NOT_FOUND for no file, DATA_LOSS when a file
            is not what its manifest says.
    """
    if model == "pocket":
        return _from_manifest(_pocket_folder() / "embedder.json", random_weights)
    if model.endswith(".json"):
        return _from_manifest(Path(model), random_weights)
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        raise invalid(
            "model", f"{model!r} is no model; give pocket, ViT-B-32, ViT-H-14 or another name of open_clip's"
        )
    if random_weights:
        return ModelFiles("open_clip", model, config, {}, None)
    if weights is None:
        if model not in CHECKPOINTS:
            raise invalid(
                "weights", f"say where the weights of {model} are: only {', '.join(CHECKPOINTS)} are known"
            )
        weights = _models_dir() / CHECKPOINTS[model]
    return ModelFiles("open_clip", model, config, {}, _existing(weights), _sha256(weights))


def _from_manifest(path: Path, random_weights: bool) -> ModelFiles:
    manifest = json.loads(_existing(path).read_text())
    parts = manifest["family"], manifest["variant"], manifest["model_config"], manifest["preprocess"]
    if random_weights:
        return ModelFiles(*parts, None)
    weights = _existing(path.with_suffix(".safetensors"))
    digest = _sha256(weights)
    if digest != manifest["sha256"]:
        raise RegionSearchError(
            Kind.DATA_LOSS,
            f"the weights in {weights} are not those that {path.name} describes (SHA-256 {digest[:12]}…, not "
            f"{manifest['sha256'][:12]}…); restore both files together",
            field="model",
        )
    return ModelFiles(*parts, weights, digest)


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


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    raise RegionSearchError(
        Kind.NOT_FOUND,
        f"{path} does not exist; `regionsearch models pull base` (or large) downloads OpenCLIP's weights "
        "into REGIONSEARCH_MODELS_DIR",
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
