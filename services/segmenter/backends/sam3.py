"""The ``sam3`` family: Segment Anything 3, images only, through transformers.

Two models share an image encoder: one finds all objects that a phrase names, the other one, a SAM 2, answers
points, boxes and masks. Source: Carion et al. 2025, "SAM 3: Segment Anything with Concepts".
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from regionsearch.images import Pixels
from services.segmenter.backends.base import (
    EagerDecoding,
    Embedding,
    FoundMasks,
    Geometry,
    ModelFiles,
    ModelIdentity,
    PhraseFinder,
    PromptBatch,
    Proposer,
    ResizeStep,
)
from services.segmenter.backends.hugging_face import check_compile, load_pretrained, load_tokenizer
from services.segmenter.backends.refiner import Refiner
from services.segmenter.options import EverythingOptions
from services.torch_runtime.devices import autocast, staged, to_device

_MEAN = _STD = [0.5, 0.5, 0.5]
_CONTEXT = 32  # tokens of a phrase
_LEVELS = 3  # maps of a neck that are used; it makes a fourth one


def load(files: ModelFiles, device: str, precision: str, compile_model: bool) -> Sam3Backend:
    """Loads a folder of the Hugging Face hub; see `services.segmenter.backends.load_backend`."""
    check_compile(files, compile_model)
    identity = ModelIdentity(files.family, files.variant, files.digest, precision, device)
    tokenizer = load_tokenizer(files)
    detector, tracker = (load_pretrained(name, files) for name in ("Sam3Model", "Sam3TrackerModel"))
    return Sam3Backend(detector, tracker, tokenizer, identity)


class Sam3Backend:
    """A SAM 3 behind :class:`~services.segmenter.backends.base.Backend`.

    Args:
        detector: A ``transformers.Sam3Model``; finds phrases.
        tracker: A ``transformers.Sam3TrackerModel``; answers prompts. It gets the encoder of the detector.
        tokenizer: Of phrases.
        identity: Names device and precision.
    """

    mask_threshold = 0.0
    refiner: Refiner | None = None
    proposer: Proposer | None = None
    choices: EverythingOptions | None = None

    def __init__(self, detector: Any, tracker: Any, tokenizer: Any, identity: ModelIdentity) -> None:
        self.identity = identity
        self.device = torch.device(identity.device)
        tracker.vision_encoder.backbone = detector.vision_encoder.backbone
        self.detector, self.tracker = (
            model.to(self.device).eval().requires_grad_(False) for model in (detector, tracker)
        )
        decoder = self.tracker.mask_decoder
        # The decoder cuts its answer to one mask or to the other three; all four are wanted.
        self._choose_single = decoder._dynamic_multimask_via_stability
        decoder._dynamic_multimask_via_stability = lambda masks, ious: (masks, ious)
        self._is_dynamic, decoder.dynamic_multimask_via_stability = (
            decoder.dynamic_multimask_via_stability,
            True,
        )
        self._side: int = self.tracker.prompt_encoder.input_image_size
        self.mask_size: tuple[int, int] = tuple(self.tracker.prompt_encoder.mask_input_size)
        width: int = self.tracker.hidden_dim
        self.feature_channels: tuple[int, ...] = width, width // 4, width // 8
        self.encode_batch = 1 if self.device.type == "cpu" else 4
        self.decode_batch = 8 if self.device.type == "cpu" else 64
        self.phrase_finder: PhraseFinder | None = Sam3PhraseFinder(self.detector, tokenizer, identity)

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Squeezes the image into the encoder's square, in whole values, as ``Sam3ImageProcessor`` does."""
        height, width = image.shape[:2]
        square = self._side, self._side
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        pixels = transforms.resize(pixels, list(square), antialias=True)
        steps = (ResizeStep((height, width), (height, width)),)
        return staged(pixels, self.device), Geometry((height, width), square, square, steps)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Runs the image encoder and the prompts' neck. The last map of an embedding is the encoder's own."""
        batch = torch.stack([pixels.to(self.device, non_blocking=True) for pixels, _ in prepared])
        batch = transforms.normalize(transforms.to_dtype(batch, torch.float32, scale=True), _MEAN, _STD)
        vision, decoder = self.tracker.vision_encoder, self.tracker.mask_decoder
        with autocast(self.identity.precision, self.device):
            encoded = vision.backbone(batch).last_hidden_state
            side = self._side // vision.config.backbone_config.patch_size
            encoded = encoded.unflatten(1, (side, side)).permute(0, 3, 1, 2)
            fine, middle, coarse = vision.neck(encoded)[0][:_LEVELS]
            fine, middle = decoder.conv_s0(fine), decoder.conv_s1(middle)
            # As published: transformers adds it to the map that it drops.
            coarse = coarse + self.tracker.no_memory_embedding.view(1, -1, 1, 1)
        maps = [part.float() for part in (coarse, middle, fine, encoded)]
        return [
            Embedding(tuple(part[place].clone() for part in maps), geometry)
            for place, (_, geometry) in enumerate(prepared)
        ]

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: PromptBatch) -> EagerDecoding:
        """Runs prompt encoder and mask decoder; every mask of every prompt is computed."""
        coarse, middle, fine = (part[None] for part in embedding.features[:_LEVELS])
        points, labels, boxes, masks = (
            None if part is None else to_device(part, self.device)
            for part in (prompts.points, prompts.labels, prompts.boxes, prompts.mask_logits)
        )
        if points is None and boxes is None:  # a padding point stands in, as in transformers
            points = torch.zeros(len(prompts), 1, 2, device=self.device)
            labels = torch.full((len(prompts), 1), -1, dtype=torch.int32, device=self.device)
        sparse, dense = self.tracker.prompt_encoder(
            input_points=None if points is None else points[:, None].float(),
            input_labels=None if labels is None else labels[:, None],
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=masks,
        )
        with autocast(self.identity.precision, self.device):
            logits, ious, *_ = self.tracker.mask_decoder(
                image_embeddings=coarse.expand(len(prompts), -1, -1, -1),
                image_positional_embeddings=self.tracker.get_image_wide_positional_embeddings(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                high_resolution_features=[fine, middle],
            )
        logits, ious = logits.float(), ious.float()
        if self._is_dynamic:
            single, quality = self._choose_single(logits, ious)
            logits = torch.cat([single, logits[:, :, 1:]], dim=2)
            ious = torch.cat([quality, ious[:, :, 1:]], dim=2)
        return EagerDecoding(ious[:, 0], logits[:, 0])


class Sam3PhraseFinder:
    """Finds all objects that a phrase names.

    Args:
        detector: A ``transformers.Sam3Model``.
        tokenizer: Of phrases.
        identity: Names device and precision.
    """

    def __init__(self, detector: Any, tokenizer: Any, identity: ModelIdentity) -> None:
        self._detector, self._tokenizer, self._identity = detector, tokenizer, identity

    def is_truncated(self, phrase: str) -> bool:
        """Whether a phrase is longer than the model reads."""
        return len(self._tokenizer(phrase).input_ids) > _CONTEXT

    @torch.inference_mode()
    def find(self, embedding: Embedding, phrase: str, min_score: float) -> FoundMasks:
        """See :class:`~services.segmenter.backends.base.PhraseFinder`."""
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        device = self._detector.device
        tokens = self._tokenizer(
            phrase, return_tensors="pt", padding="max_length", max_length=_CONTEXT, truncation=True
        )
        with autocast(self._identity.precision, device):
            maps, places = self._detector.vision_encoder.neck(embedding.features[-1][None])
            found = self._detector(
                vision_embeds=Sam3VisionEncoderOutput(fpn_hidden_states=maps, fpn_position_encoding=places),
                input_ids=to_device(tokens.input_ids, device),
                attention_mask=to_device(tokens.attention_mask, device),
            )
        scores = (found.pred_logits.float().sigmoid() * found.presence_logits.float().sigmoid())[0]
        best, order = scores.sort(descending=True, stable=True)
        order = order[: int((best > min_score).sum())]
        return FoundMasks(found.pred_masks[0, order].float(), scores[order].cpu().numpy())
