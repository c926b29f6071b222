"""OpenCLIP models: any of its architectures, and the bundled pocket model, which is one too.

How images are prepared, and which activation the towers use, belongs to the weights and not to the
architecture. It is read from open_clip's table of published weights, or from the ``open_clip_config.json``
in the folder of a file; it is never assumed.

An embedder that was trained on few words has a token table with almost only zero rows, which are not stored:
the weights file is half as large.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError, invalid, not_found
from regionsearch.models.catalog import WEIGHTS, open_clip_weights, split_open_clip
from regionsearch.models.store import checked_digest, file_digest, find
from services.embedder.backends.base import ModelFiles
from services.embedder.backends.onnx_tower import OnnxTower
from services.embedder.backends.tokenizers import Tokenizer, hub_folder, load_tokenizer, need_transformers
from services.embedder.crops import CLIP_MEAN, CLIP_STD
from services.torch_runtime.compiling import compiled
from services.torch_runtime.convolutions import optimize_convolutions
from services.torch_runtime.devices import autocast
from services.torch_runtime.model_files import SUFFIXES, existing_file, only_weights_file

_ROWS = ".rows"  # after the name of a table: which rows it has, int32, ascending; the last row always


def pack_rows(weights: dict[str, Tensor], table: str) -> dict[str, Tensor]:
    """The same weights with the zero rows of a table (n, …) left out."""
    full = weights[table]
    there = full.flatten(1).any(1)
    there[-1] = True  # says how many rows there are
    rows = there.nonzero()[:, 0]
    return weights | {table: full[rows], table + _ROWS: rows.int()}


def is_packed(file: Path) -> bool:
    """Whether a safetensors file holds a packed table."""
    with safe_open(file, framework="pt") as weights:
        return any(name.endswith(_ROWS) for name in weights.keys())  # noqa: SIM118  # it is not a dict


def unpack_rows(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restores packed weights; unpacked ones are returned unchanged."""
    unpacked = {name: value for name, value in weights.items() if not name.endswith(_ROWS)}
    for name in unpacked:
        rows = weights.get(name + _ROWS)
        if rows is not None:
            part = weights[name]
            full = torch.zeros(int(rows[-1]) + 1, *part.shape[1:], dtype=part.dtype)
            full[rows.long()] = part
            unpacked[name] = full
    return unpacked


class OpenClipBackend:
    """See :class:`services.embedder.backends.base.Backend`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        files: ModelFiles,
        device: torch.device,
        precision: str,
        compile_model: bool,
    ) -> None:
        self.files = files
        self.device = device
        self.precision = precision
        self.compiled = compile_model
        self.mean = tuple(files.preprocess.get("mean", CLIP_MEAN))
        self.std = tuple(files.preprocess.get("std", CLIP_STD))
        self.interpolation = files.preprocess.get("interpolation", "bicubic")
        self.resize_mode = files.preprocess.get("resize_mode", "shortest")
        self.fill = files.preprocess.get("fill_color", 0)
        self.size = _side(files.config["vision_cfg"]["image_size"])
        self.dimension = files.config["embed_dim"]
        self._model = model
        in_onnx = isinstance(model.visual, OnnxTower)
        self._layout = torch.contiguous_format if in_onnx else torch.channels_last
        self._encode_image = model.encode_image
        if compile_model:  # the engine pads batches to few sizes
            self._encode_image = compiled(model.encode_image, dynamic=False)
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids (N, context), and for each text whether its end was cut off."""
        return self._tokenizer(texts)

    @torch.inference_mode()
    def embed_crops(self, crops: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of normalised crops (N, 3, size, size) on the device."""
        with autocast(self.precision, self.device):
            vectors = self._encode_image(crops.contiguous(memory_format=self._layout))
        return torch.nn.functional.normalize(vectors.float(), dim=-1)

    @torch.inference_mode()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of token ids (N, context) on the device."""
        with autocast(self.precision, self.device):
            vectors = self._model.encode_text(tokens)
        return torch.nn.functional.normalize(vectors.float(), dim=-1)


def load(files: ModelFiles, device: torch.device, precision: str, compile_model: bool) -> OpenClipBackend:
    """Loads a model; see :func:`services.embedder.backends.load_backend`."""
    tokenizer = load_tokenizer(files.config["text_cfg"])  # first: what it lacks is said at once
    model = build(files.config)
    if files.weights is not None:
        try:
            load_weights(model, files.weights)
        except Exception as error:  # unpicklers and readers raise whatever a damaged file leads them to
            reason = str(error).splitlines()[0]
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{files.weights} does not hold the weights of {files.variant} ({reason}); pull them again",
                field="model",
            ) from error
    model = model.float().eval().requires_grad_(False).to(device)
    plain = device.type == "cpu" and precision == "fp32" and not compile_model
    if plain and files.graph is not None:
        model.visual = OnnxTower(files.graph)
    else:
        optimize_convolutions(model.visual, pack=plain)
    return OpenClipBackend(model, tokenizer, files, device, precision, compile_model)


def load_weights(model: Any, weights: Path) -> None:
    """Loads a file of weights, packed ones too, into a model that `build` made."""
    if weights.suffix == ".safetensors" and is_packed(weights):
        model.load_state_dict(unpack_rows(load_file(weights)))
    else:
        open_clip.load_checkpoint(model, str(weights), strict=True)


def build(config: dict[str, Any]) -> Any:
    """An open_clip model with random weights.

    Args:
        config: What open_clip keeps in a file of its ``model_configs``.

    Raises:
        RegionSearchError: FAILED_PRECONDITION or NOT_FOUND when a text tower of the Hugging Face hub needs
            a package or files that are not there.
    """
    options = {key: value for key, value in config.items() if key != "custom_text"}
    vision = dict(options["vision_cfg"])
    text = dict(options["text_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        need_transformers()
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = str(hub_folder(text["hf_model_name"], "config.json"))
    kind = open_clip.CLIP
    if config.get("custom_text") or "hf_model_name" in text:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    else:
        options.pop("multimodal_cfg", None)
    return kind(**options | {"vision_cfg": vision, "text_cfg": text})


def _side(size: int | Sequence[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise RegionSearchError(
            Kind.UNIMPLEMENTED, f"models of square images only; this one wants {size}", field="model"
        )
    return sides.pop()


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
