"""OpenCLIP models: any of its architectures, and the bundled pocket model, which is one too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from services.embedder.backends.base import ModelFiles
from services.embedder.backends.tokenizers import (
    Tokenizer,
    hub_folder,
    load_tokenizer,
    need_transformers,
)
from services.embedder.crops import CLIP_MEAN, CLIP_STD
from services.embedder.sparse_rows import is_packed, unpack_rows
from services.torch_runtime.devices import autocast

GRAPHS = 64  # that are compiled at most, of one model


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
        # Convolutions read channels last without a copy; transformers do not mind.
        self._format = (
            torch.channels_last
            if "timm_model_name" in files.config["vision_cfg"]
            else torch.contiguous_format
        )
        model.visual.to(memory_format=self._format)
        self._encode_image = model.encode_image
        if compile_model:  # a graph for each size of a batch: torch would give up after eight of them
            options: Any = {"recompile_limit": GRAPHS, "isolate_recompiles": True}  # torch's types lack them
            self._encode_image = torch.compile(model.encode_image, dynamic=False, **options)
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids (N, context), and for each text whether its end was cut off."""
        return self._tokenizer(texts)

    @torch.inference_mode()
    def embed_crops(self, crops: Tensor) -> Tensor:
        """Unit vectors (N, dimension) float32 of normalised crops (N, 3, size, size) on the device."""
        with autocast(self.precision, self.device):
            vectors = self._encode_image(crops.contiguous(memory_format=self._format))
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
            _load(model, files.weights)
        except Exception as error:  # unpicklers and readers raise whatever a damaged file leads them to
            reason = str(error).splitlines()[0]
            raise RegionSearchError(
                Kind.DATA_LOSS,
                f"{files.weights} does not hold the weights of {files.variant} ({reason}); pull them again",
                field="model",
            ) from error
    model = model.float().eval().requires_grad_(False).to(device)
    return OpenClipBackend(model, tokenizer, files, device, precision, compile_model)


def _load(model: Any, weights: Path) -> None:
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
