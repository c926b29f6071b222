"""An OpenCLIP model's architecture, preprocessing and weights, from its name or from its files.

How images are prepared, and which activation the towers use, belongs to the weights and not to the
architecture. It is read from open_clip's table of published weights, or from the ``open_clip_config.json``
in the folder of a file; it is never assumed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.models import WEIGHTS, checked_digest, file_digest, find, open_clip_weights, split_open_clip
from services.embedder.backends.base import ModelFiles
from services.torch_runtime.model_files import SUFFIXES, existing_file, only_weights_file

CONFIG = "open_clip_config.json"
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_REMEDY = "give the path of a file of weights"


def find_open_clip(model: str, weights: Path | None, random_weights: bool) -> ModelFiles:
    """The files of an OpenCLIP model.

    Args:
        model: One of open_clip's names, with the tag of its weights or without (``ViT-B-32``,
            ``ViT-B-32:openai``); or a folder, or a file in a folder, with an ``open_clip_config.json``.
        weights: Weights that are not where `regionsearch models pull` puts them.
        random_weights: Take none.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for an unknown name or tag, and where the preprocessing is not
            known without a tag; NOT_FOUND for no file; DATA_LOSS for a damaged one.
    """
    if model.startswith("hf-hub:"):
        raise invalid(
            "model",
            f"{model!r} is a repository, and services never reach the network: download its {CONFIG} and "
            "weights into a folder, and give the path of the folder",
        )
    name, tag = split_open_clip(model)
    config = open_clip.get_model_config(name)
    if config is None:
        path = Path(model).expanduser()
        if path.exists() or path.suffix in SUFFIXES or path.is_absolute():
            return _from_files(path, weights, random_weights)
        raise invalid(
            "model",
            f"{name!r} is not a model; give pocket, ViT-B-32, ViT-H-14 or another name of open_clip's, or "
            f"the path of a folder with an {CONFIG}",
        )
    if weights is not None and not tag and (weights.parent / CONFIG).is_file():
        return _from_files(weights, None, random_weights)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise invalid("model", f"{name} has no weights {tag!r}; there are {', '.join(tags) or 'none'}")
    if random_weights:
        return ModelFiles("open_clip", name, *_configured(name, config, tag), None)
    published = WEIGHTS.get(name) if weights is None else None
    if published is not None and tag in ("", published.tag):
        tag = published.tag
    else:
        tag = tag or _only_tag(name, tags)
        published = open_clip_weights(name, tag)
    config, preprocess = _configured(name, config, tag)
    if weights is not None:
        existing_file(weights, "weights", _REMEDY)
        return ModelFiles("open_clip", name, config, preprocess, weights, file_digest(weights))
    return ModelFiles("open_clip", name, config, preprocess, find(published), checked_digest(published))


def _configured(name: str, config: dict[str, Any], tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing as weights of that tag want them; without a tag open_clip's defaults."""
    published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if "quick_gelu" in published:
        config = config | {"quick_gelu": published["quick_gelu"]}
    return config, merge_preprocess_dict(asdict(PreprocessCfg()), published)


def _only_tag(name: str, tags: list[str]) -> str:
    """A tag that stands for all tags of a model, because they agree on architecture and preprocessing."""
    if not tags:
        raise invalid(
            "model",
            f"open_clip publishes no weights of {name}, so that its preprocessing is not known; put the "
            f"{CONFIG} of your weights next to them, and give the path of the folder",
        )
    first = _configured(name, {}, tags[0])
    if any(_configured(name, {}, tag) != first for tag in tags):
        raise invalid(
            "model",
            f"weights of {name} differ in preprocessing or activation; say which ones these are: "
            + ", ".join(f"{name}:{tag}" for tag in tags),
        )
    return tags[0]


def _from_files(path: Path, weights: Path | None, random_weights: bool) -> ModelFiles:
    folder = path if path.is_dir() else path.parent
    described = folder / CONFIG
    if not described.is_file():
        if not path.exists():
            raise not_found("model", f"{path} is not there; give the path of a folder with an {CONFIG}")
        raise not_found(
            "model",
            f"{described} is not there, and without it the architecture and preprocessing of these weights "
            "are not known; put it there, or give a name of open_clip's as the model and the file as the "
            "weights",
        )
    try:
        content = json.loads(described.read_text())
        config, preprocess = content["model_cfg"], content["preprocess_cfg"]
        if not all(isinstance(config[part], dict) for part in ("vision_cfg", "text_cfg")):
            raise TypeError("vision_cfg and text_cfg are not objects")
        preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), preprocess)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegionSearchError(
            Kind.DATA_LOSS, f"{described} is not a configuration of open_clip's ({error!r})", field="model"
        ) from error
    if "hf_tokenizer_name" in config["text_cfg"] and (folder / "tokenizer_config.json").is_file():
        config["text_cfg"]["hf_tokenizer_name"] = str(folder)
    if random_weights:
        return ModelFiles("open_clip", folder.name, config, preprocess, None)
    file = weights or (_weights_in(folder) if path.is_dir() else path)
    existing_file(file, "model" if weights is None else "weights", _REMEDY)
    return ModelFiles("open_clip", folder.name, config, preprocess, file, file_digest(file))


def _weights_in(folder: Path) -> Path:
    """The one file of weights in a folder; where there are several, that of open_clip's usual name."""
    usual = [folder / name for name in PREFERRED if (folder / name).is_file()]
    return usual[0] if usual else only_weights_file(folder)
