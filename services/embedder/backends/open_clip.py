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
from services.embedder.crops import CLIP_MEAN, CLIP_STD
from services.embedder.sparse_rows import is_packed, unpack_rows
from services.torch_runtime.devices import autocast

# Letters of a word, and of a text for each token, that are read. Longer tokens do not exist, and the time
# that CLIP's tokenizer takes for a word grows with the square of its length: 10,000 letters took 40 s.
WORD_LETTERS, TOKEN_LETTERS = 256, 32
WORDS_KEPT = 100_000
GRAPHS = 64  # that are compiled at most, of one model


class OpenClipBackend:
    """See :class:`services.embedder.backends.base.Backend`."""

    def __init__(
        self, model: Any, files: ModelFiles, device: torch.device, precision: str, compile_model: bool
    ) -> None:
        self.files = files
        self.device = device
        self.precision = precision
        self.compiled = compile_model
        self.mean = tuple(files.preprocess.get("mean", CLIP_MEAN))
        self.std = tuple(files.preprocess.get("std", CLIP_STD))
        self.resize_mode = files.preprocess.get("resize_mode", "shortest")
        size = files.config["vision_cfg"]["image_size"]
        self.size = size if isinstance(size, int) else size[0]
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
        text = files.config["text_cfg"]
        self._context = text.get("context_length", 77)
        self._tokenizer = _tokenizer(text, self._context)
        self._special = dict(self._tokenizer.cache)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Token ids (N, context), and for each text whether its end was cut off."""
        short = [_shorten(text, self._context) for text in texts]
        longer = self._tokenizer(short, context_length=self._context + 1)
        ends = longer[:, -1].clone()  # the end mark of what does not fit, else padding
        tokens = longer[:, :-1].contiguous()
        tokens[:, -1] = torch.where(ends > 0, ends, tokens[:, -1])
        if len(self._tokenizer.cache) > WORDS_KEPT:  # it keeps every word that it has ever seen
            self._tokenizer.cache = dict(self._special)
        cut = zip(ends.tolist(), texts, short, strict=True)
        return tokens, [bool(end) or text != less for end, text, less in cut]

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
    return OpenClipBackend(model, files, device, precision, compile_model)


def _load(model: Any, weights: Path) -> None:
    if weights.suffix == ".safetensors" and is_packed(weights):
        model.load_state_dict(unpack_rows(load_file(weights)))
    else:
        open_clip.load_checkpoint(model, str(weights), strict=True)


def build(config: dict[str, Any]) -> Any:
    """An open_clip model with random weights.

    Args:
        config: What open_clip keeps in a file of its ``model_configs``.
    """
    options = {key: value for key, value in config.items() if key not in ("custom_text", "multimodal_cfg")}
    vision = dict(options["vision_cfg"])
    text = dict(options["text_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    kind = (
        open_clip.CustomTextCLIP if config.get("custom_text") or "hf_model_name" in text else open_clip.CLIP
    )
    return kind(**options | {"vision_cfg": vision, "text_cfg": text})


def _shorten(text: str, context: int) -> str:
    """As much of a text as a model can read, and a little more; texts of ordinary length are left alone."""
    if len(text) <= WORD_LETTERS:
        return text
    less = " ".join(word[:WORD_LETTERS] for word in text.split())[: TOKEN_LETTERS * context]
    return text if less == " ".join(text.split()) else less


def _tokenizer(text: dict[str, Any], context: int) -> Any:
    if "hf_tokenizer_name" in text:
        raise RegionSearchError(
            Kind.UNIMPLEMENTED,
            "this model's tokenizer is not part of open_clip; take a model that uses CLIP's own tokenizer",
            field="model",
        )
    return open_clip.SimpleTokenizer(context_length=context, **text.get("tokenizer_kwargs", {}))
