"""The ``sam`` family: Segment Anything's published models, and any other ``segment_anything`` Sam."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from regionsearch.images import Pixels
from services.segmenter.backends.base import (
    Embedding,
    Geometry,
    ModelFiles,
    ModelIdentity,
    PromptBatch,
    ResizeStep,
)
from services.segmenter.backends.checkpoints import load_weights, read_weights
from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.refiner import Refiner, RefinerNet
from services.segmenter.backends.sam_decoder import Decoded, LazyMaskDecoder
from services.torch_runtime.devices import autocast

_ENCODE_BATCH = {"cpu": 1, "cuda": 8}  # on a CPU a batch only waits for its last image
# Maps of a decoder batch that still fit into the last-level cache of a CPU, and into a small part of a GPU.
_BATCH_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}


def load(files: ModelFiles, device: str, precision: str) -> SamBackend:
    """Loads ``pocket``, ``vit_b``, ``vit_l`` or ``vit_h``; see `services.segmenter.backends.load_backend`."""
    weights = read_weights(files)
    if files.variant == "pocket":
        model = build_pocket_sam(**files.architecture)
    else:
        model = sam_model_registry[files.variant]()
    load_weights(model, weights, files)
    return SamBackend(model, ModelIdentity(files.family, files.variant, files.digest, precision, device))


class SamBackend:
    """A Sam behind :class:`~services.segmenter.backends.base.Backend`.

    Args:
        model: Its image encoder may be any module with an ``img_size`` that maps (B, 3, S, S) to (B, C, h,
            w).
        identity: Says device and precision; fp32 gives the reference's answer.

    Attributes:
        model: The same; ``SamPredictor`` and ``SamAutomaticMaskGenerator`` work on it.
    """

    def __init__(self, model: Sam, identity: ModelIdentity) -> None:
        self.identity = identity
        self.device = torch.device(identity.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._autocast = functools.partial(autocast, identity.precision, self.device)
        self._decoder = LazyMaskDecoder(self.model, self._autocast)
        self.mask_threshold: float = model.mask_threshold
        self.mask_size: tuple[int, int] = tuple(model.prompt_encoder.mask_input_size)
        self._side: int = model.image_encoder.img_size
        height, width = model.prompt_encoder.image_embedding_size
        map_bytes = 4 * height * width * model.prompt_encoder.embed_dim
        self.encode_batch = _ENCODE_BATCH[self.device.type]
        net: RefinerNet | None = getattr(self.model, "refiner", None)
        self.refiner = None if net is None else Refiner(net, self._autocast)
        self.decode_batch = max(1, _BATCH_BYTES[self.device.type] // map_bytes)

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Resizes so that the longest side fills the encoder's input, as ``ResizeLongestSide`` does."""
        height, width = image.shape[:2]
        input_size = ResizeLongestSide.get_preprocess_shape(height, width, self._side)
        input_height, input_width = input_size = max(1, input_size[0]), max(1, input_size[1])
        resized = Image.fromarray(image).resize((input_width, input_height), Image.Resampling.BILINEAR)
        padded_size = self._side, self._side
        steps = (
            ResizeStep(padded_size, (input_height, input_width)),
            ResizeStep((height, width), (height, width)),
        )
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        return pixels, Geometry((height, width), input_size, padded_size, steps)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Normalises, pads to a square and encodes, as ``Sam.preprocess`` does."""
        batch = torch.stack([self.model.preprocess(pixels.to(self.device)) for pixels, _ in prepared])
        with self._autocast():
            features = self.model.image_encoder(batch).float()
        # Each image owns its features: a view would keep the whole batch alive in the cache.
        return [
            Embedding((part.clone(),), geometry)
            for part, (_, geometry) in zip(features, prepared, strict=True)
        ]

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Decoded:
        """Runs prompt encoder and mask decoder; see :class:`LazyMaskDecoder` for what is left for later."""
        points = None
        if prompts.points is not None and prompts.labels is not None:
            points = (prompts.points.to(self.device), prompts.labels.to(self.device))
        boxes = None if prompts.boxes is None else prompts.boxes.to(self.device)
        masks = None if prompts.mask_logits is None else prompts.mask_logits.to(self.device)
        encoder = self.model.prompt_encoder
        sparse, dense = encoder(points=points, boxes=boxes, masks=masks)
        if masks is None:
            dense = encoder.no_mask_embed.weight[..., None, None]
        return self._decoder(embedding.features[0], sparse, dense)
