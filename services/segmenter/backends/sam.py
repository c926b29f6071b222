"""The ``sam`` family: Segment Anything's published models, and any other ``segment_anything`` Sam."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from regionsearch.images import Pixels
from services.segmenter.backends.base import (
    Embedding,
    Geometry,
    ModelFiles,
    ModelIdentity,
    PhraseFinder,
    PromptBatch,
    Proposer,
    ResizeStep,
)
from services.segmenter.backends.checkpoints import load_weights, read_weights
from services.segmenter.backends.mobile import build_mobile_sam, from_published
from services.segmenter.backends.pocket import build_pocket_sam
from services.segmenter.backends.proposer import HeadProposer, ProposalHead
from services.segmenter.backends.refiner import Refiner, RefinerNet
from services.segmenter.backends.sam_decoder import Decoded, LazyMaskDecoder
from services.segmenter.backends.vit_attention import fuse_attention
from services.segmenter.options import EverythingOptions
from services.torch_runtime.compiling import compiled
from services.torch_runtime.convolutions import fold_batch_norms, optimize_convolutions
from services.torch_runtime.devices import autocast, staged, to_device

_ENCODE_BATCH = {"cpu": 1, "cuda": 8}  # on a CPU a batch only delays its first images
# Bytes of a decoder batch's maps: they fit a CPU's last-level cache, or a small part of a GPU's memory.
_BATCH_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}


def load(files: ModelFiles, device: str, precision: str, compile_model: bool) -> SamBackend:
    """Loads ``pocket``, ``mobile`` or a ``vit_…``; see `services.segmenter.backends.load_backend`."""
    weights = read_weights(files)
    if files.variant == "pocket":
        model = build_pocket_sam(**files.architecture)
    elif files.variant == "mobile":
        model, weights = build_mobile_sam(), from_published(weights)
    else:
        model = sam_model_registry[files.variant]()
    load_weights(model, weights, files)
    if files.variant == "pocket":
        fold_batch_norms(model)  # of the refiner and the proposals, too
    if files.variant.startswith("vit_"):
        fuse_attention(model.image_encoder)
    else:
        pack = device == "cpu" and precision == "fp32" and not compile_model
        optimize_convolutions(model.image_encoder, pack=pack)
    identity = ModelIdentity(files.family, files.variant, files.digest, precision, device)
    return SamBackend(model, identity, compile_model)


def prepare_longest_side(image: Pixels, side: int, device: torch.device) -> tuple[Tensor, Geometry]:
    """Resizes so that the longest side fills the encoder's input, as ``ResizeLongestSide`` does.

    Args:
        image: uint8 RGB (H, W, 3).
        side: Of the encoder's input.
        device: Where the pixels will go.

    Returns:
        Pixels uint8 (3, h, w), not padded yet, and the geometry.
    """
    height, width = image.shape[:2]
    input_size = ResizeLongestSide.get_preprocess_shape(height, width, side)
    input_height, input_width = input_size = max(1, input_size[0]), max(1, input_size[1])
    resized = Image.fromarray(image).resize((input_width, input_height), Image.Resampling.BILINEAR)
    padded_size = side, side
    steps = (
        ResizeStep(padded_size, (input_height, input_width)),
        ResizeStep((height, width), (height, width)),
    )
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return staged(pixels, device), Geometry((height, width), input_size, padded_size, steps)


class SamBackend:
    """A Sam behind :class:`~services.segmenter.backends.base.Backend`.

    Args:
        model: Its image encoder may be any module with an ``img_size`` that maps (B, 3, S, S) to (B, C, h,
            w).
        identity: Says device and precision. fp32 gives the reference's answer; others are for the encoder and
            the refiner, and the mask decoder stays in fp32.
        compile_model: Whether encoder and refiner go through ``torch.compile``. The decoder does not: its
            prompts come in too many shapes.

    Attributes:
        proposer: The model's own; may be replaced.
        model: The model; ``SamPredictor`` and ``SamAutomaticMaskGenerator`` work on it.
    """

    choices: EverythingOptions | None = None
    phrase_finder: PhraseFinder | None = None

    def __init__(self, model: Sam, identity: ModelIdentity, compile_model: bool = False) -> None:
        self.identity = identity
        self.device = torch.device(identity.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._autocast = functools.partial(autocast, identity.precision, self.device)
        self._encode_image: Callable[[Tensor], Tensor] = self.model.image_encoder
        if compile_model:
            self._encode_image = compiled(self._encode_image)
        # Not in lower precision: its quality estimates are compared with thresholds, where a hundredth
        # decides, and most of the time is the encoder's.
        self._decoder = LazyMaskDecoder(self.model, nullcontext)
        encoder = self.model.prompt_encoder
        # By label + 1: what is added to padding, to a background point, to a point on the object.
        self._point_embeddings = torch.cat(
            [table.weight for table in (encoder.not_a_point_embed, *encoder.point_embeddings[:2])]
        )
        self.mask_threshold: float = model.mask_threshold
        self.mask_size: tuple[int, int] = tuple(model.prompt_encoder.mask_input_size)
        self.feature_channels: tuple[int, ...] = (model.prompt_encoder.embed_dim,)
        self._side: int = model.image_encoder.img_size
        height, width = model.prompt_encoder.image_embedding_size
        map_bytes = 4 * height * width * model.prompt_encoder.embed_dim
        self.encode_batch = _ENCODE_BATCH[self.device.type]
        net: RefinerNet | None = getattr(self.model, "refiner", None)
        self.refiner = None if net is None else Refiner(net, self._autocast, compile_model)
        head: ProposalHead | None = getattr(self.model, "proposer", None)
        self.proposer: Proposer | None = None if head is None else HeadProposer(head, self._autocast)
        self.decode_batch = max(1, _BATCH_BYTES[self.device.type] // map_bytes)

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """See :func:`prepare_longest_side`."""
        return prepare_longest_side(image, self._side, self.device)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Normalises, pads to a square and encodes, as ``Sam.preprocess`` does."""
        batch = torch.stack(
            [self.model.preprocess(pixels.to(self.device, non_blocking=True)) for pixels, _ in prepared]
        )
        with self._autocast():
            features = self._encode_image(batch).float()
        # Each image owns its features: a view would keep the whole batch alive in the cache.
        return [
            Embedding((part.clone(),), geometry)
            for part, (_, geometry) in zip(features, prepared, strict=True)
        ]

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Decoded:
        """Runs prompt encoder and mask decoder; see :class:`LazyMaskDecoder` for what is left for later."""
        encoder = self.model.prompt_encoder
        masks = prompts.mask_logits
        if masks is None:
            dense = encoder.no_mask_embed.weight[..., None, None]
        else:
            dense = encoder._embed_masks(to_device(masks, self.device))
        return self._decoder(embedding.features[0], self._embed(prompts), dense)

    def _embed(self, prompts: PromptBatch) -> Tensor:
        """Prompt tokens (B, n, C), as of ``PromptEncoder.forward``.

        The original selects points by boolean masks, which makes the host wait for a GPU to count them.
        """
        encoder, parts = self.model.prompt_encoder, []
        if prompts.points is not None and prompts.labels is not None:
            points = to_device(prompts.points, self.device) + 0.5
            labels = to_device(prompts.labels.long(), self.device)
            if prompts.boxes is None:  # a padding point stands in for the box
                points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
            places: Tensor = encoder.pe_layer.forward_with_coords(points, encoder.input_image_size)
            places = places.masked_fill((labels == -1)[..., None], 0.0)
            parts.append(places + F.embedding(labels + 1, self._point_embeddings))
        if prompts.boxes is not None:
            parts.append(encoder._embed_boxes(to_device(prompts.boxes, self.device)))
        if not parts:
            return torch.empty((len(prompts), 0, encoder.embed_dim), device=self.device)
        return torch.cat(parts, dim=1)
