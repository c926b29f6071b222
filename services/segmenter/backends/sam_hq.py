"""The ``sam_hq`` family: Segment Anything in High Quality, through transformers.

To each mask of Segment Anything's decoder it adds one that is drawn from finer maps of the image encoder.
Source: Ke et al. 2023, "Segment Anything in High Quality".
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from regionsearch.images import Pixels
from services.segmenter.backends.base import (
    EagerDecoding,
    Embedding,
    Geometry,
    ModelFiles,
    ModelIdentity,
    PhraseFinder,
    PromptBatch,
    Proposer,
)
from services.segmenter.backends.hugging_face import check_compile, load_pretrained
from services.segmenter.backends.refiner import Refiner
from services.segmenter.backends.sam import prepare_longest_side
from services.segmenter.options import EverythingOptions
from services.torch_runtime.devices import autocast, to_device

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def load(files: ModelFiles, device: str, precision: str, compile_model: bool) -> SamHqBackend:
    """Loads a folder of the Hugging Face hub; see `services.segmenter.backends.load_backend`."""
    check_compile(files, compile_model)
    identity = ModelIdentity(files.family, files.variant, files.digest, precision, device)
    return SamHqBackend(load_pretrained("SamHQModel", files), identity)


class SamHqBackend:
    """A SAM-HQ behind :class:`~services.segmenter.backends.base.Backend`.

    Args:
        model: A ``transformers.SamHQModel``.
        identity: Says device and precision; the latter is that of the encoder, the decoder stays in fp32.
    """

    mask_threshold = 0.0
    refiner: Refiner | None = None
    proposer: Proposer | None = None
    choices: EverythingOptions | None = None
    phrase_finder: PhraseFinder | None = None

    def __init__(self, model: Any, identity: ModelIdentity) -> None:
        self.identity = identity
        self.device = torch.device(identity.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        encoder = self.model.prompt_encoder
        self._side: int = encoder.input_image_size
        height, width = encoder.image_embedding_size
        self.mask_size: tuple[int, int] = 4 * height, 4 * width
        self.feature_channels: tuple[int, ...] = (encoder.hidden_size,)
        self.encode_batch = 1 if self.device.type == "cpu" else 8
        self.decode_batch = 8 if self.device.type == "cpu" else 64

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Resizes as the ``sam`` family does."""
        return prepare_longest_side(image, self._side, self.device)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Runs the image encoder; embeddings hold its map, and the one that the finer mask is drawn from."""
        batch = torch.stack(
            [self._normalise(pixels.to(self.device, non_blocking=True)) for pixels, _ in prepared]
        )
        decoder = self.model.mask_decoder
        with autocast(self.identity.precision, self.device):
            features, early = self.model.get_image_embeddings(batch)
        features, early = features.float(), early[0].float().permute(0, 3, 1, 2)
        fine = decoder.encoder_conv2(
            decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(features)))
        ) + decoder.compress_vit_conv2(
            decoder.activation(decoder.compress_vit_norm(decoder.compress_vit_conv1(early)))
        )
        return [
            Embedding((features[place].clone(), fine[place].clone()), geometry)
            for place, (_, geometry) in enumerate(prepared)
        ]

    def _normalise(self, pixels: Tensor) -> Tensor:
        pixels = transforms.normalize(transforms.to_dtype(pixels, torch.float32, scale=True), _MEAN, _STD)
        height, width = pixels.shape[1:]
        return F.pad(pixels, (0, self._side - width, 0, self._side - height))

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: PromptBatch) -> EagerDecoding:
        """Runs prompt encoder and mask decoder; every mask of every prompt is computed.

        This is the published decoder. That of transformers (5.24) draws masks from the map that its inner
        transformer takes instead of the one that it returns, and makes the finer map anew for each prompt.
        """
        model, count = self.model, len(prompts)
        points, labels, boxes, masks = (
            None if part is None else to_device(part, self.device)
            for part in (prompts.points, prompts.labels, prompts.boxes, prompts.mask_logits)
        )
        sparse, dense = model.prompt_encoder(
            input_points=None if points is None else points[:, None].float(),
            input_labels=None if labels is None else labels[:, None],
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=masks,
        )
        decoder, (features, fine) = model.mask_decoder, embedding.features
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])
        tokens = tokens.expand(count, 1, -1, -1)
        if sparse is not None:
            tokens = torch.cat([tokens, sparse], dim=2)
        answered, keys = decoder.transformer(
            point_embeddings=tokens,
            image_embeddings=(features[None] + dense).expand(count, -1, -1, -1),
            image_positional_embeddings=model.get_image_wide_positional_embeddings(),
            attention_similarity=None,
        )
        keys = keys[:, 0].transpose(1, 2).unflatten(2, features.shape[1:])
        coarse = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(keys)))
        coarse = decoder.activation(decoder.upscale_conv2(coarse))
        finer = decoder.mask_conv2(decoder.activation(decoder.mask_norm(decoder.mask_conv1(coarse)))) + fine
        heads = decoder.output_hypernetworks_mlps
        brushes = torch.stack([head(answered[:, 0, 1 + place]) for place, head in enumerate(heads)], dim=1)
        brush = decoder.hq_mask_mlp(answered[:, 0, 1 + len(heads)])
        logits = (
            torch.einsum("bnc,bchw->bnhw", brushes, coarse)
            + torch.einsum("bc,bchw->bhw", brush, finer)[:, None]
        )
        return EagerDecoding(decoder.iou_prediction_head(answered[:, 0, 0]), logits)
