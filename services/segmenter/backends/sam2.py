"""The ``sam2`` family: Segment Anything 2, images only, from its own package (``regionsearch[sam2]``)."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from regionsearch.errors import Kind, RegionSearchError
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
    ResizeStep,
)
from services.segmenter.backends.checkpoints import load_weights, read_weights
from services.segmenter.backends.refiner import Refiner
from services.segmenter.options import EverythingOptions
from services.torch_runtime.compiling import compiled
from services.torch_runtime.devices import autocast, staged, to_device

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BOX_LABELS = (2, 3)  # the prompt encoder's labels for the two corners of a box


def load(files: ModelFiles, device: str, precision: str, compile_model: bool) -> Sam2Backend:
    """Loads ``sam2.1_hiera_t``, ``_s``, ``_b+`` or ``_l``; see `services.segmenter.backends.load_backend`."""
    weights = read_weights(files)
    model = build(files.variant)
    load_weights(model, weights, files)
    identity = ModelIdentity(files.family, files.variant, files.digest, precision, device)
    return Sam2Backend(model, identity, compile_model)


def build(variant: str) -> Any:
    """A ``SAM2Base`` with random weights.

    Raises:
        RegionSearchError: FAILED_PRECONDITION when the package is not installed.
    """
    try:
        from sam2.build_sam import build_sam2
    except ImportError as error:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            "models of the sam2 family need the sam2 package: SAM2_BUILD_CUDA=0 pip install "
            "--no-build-isolation 'regionsearch[sam2]'",
            field="model",
        ) from error
    return build_sam2(f"configs/sam2.1/{variant}.yaml", device="cpu")


class Sam2Backend:
    """A SAM 2 behind :class:`~services.segmenter.backends.base.Backend`.

    Its decoder runs as published: every mask of every prompt is computed.

    Args:
        model: A ``sam2.modeling.sam2_base.SAM2Base``.
        identity: Names device and precision.
        compile_model: Whether the image encoder goes through ``torch.compile``.
    """

    mask_threshold = 0.0
    refiner: Refiner | None = None
    proposer: Proposer | None = None
    choices: EverythingOptions | None = None
    phrase_finder: PhraseFinder | None = None

    def __init__(self, model: Any, identity: ModelIdentity, compile_model: bool = False) -> None:
        self.identity = identity
        self.device = torch.device(identity.device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.mask_size: tuple[int, int] = tuple(model.sam_prompt_encoder.mask_input_size)
        width: int = model.sam_prompt_encoder.embed_dim
        # As SAM2Base.forward_image narrows the finer maps.
        self.feature_channels: tuple[int, ...] = width, width // 4, width // 8
        self.encode_batch = 1 if self.device.type == "cpu" else 8
        self.decode_batch = 8 if self.device.type == "cpu" else 64
        self._side: int = model.image_size
        self._forward_image: Callable[[Tensor], Any] = model.forward_image
        if compile_model:
            self._forward_image = compiled(self._forward_image)

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """Squeezes the image into the encoder's square, as ``SAM2Transforms`` does."""
        height, width = image.shape[:2]
        square = self._side, self._side
        pixels = transforms.to_dtype(torch.from_numpy(image).permute(2, 0, 1), torch.float32, scale=True)
        pixels = transforms.normalize(transforms.resize(pixels, list(square), antialias=True), _MEAN, _STD)
        steps = (ResizeStep((height, width), (height, width)),)
        return staged(pixels, self.device), Geometry((height, width), square, square, steps)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Runs the image encoder; embeddings hold its map and the two finer ones that the decoder adds."""
        batch = torch.stack([pixels.to(self.device, non_blocking=True) for pixels, _ in prepared])
        with autocast(self.identity.precision, self.device):
            outputs = self._forward_image(batch)
            _, maps, _, sizes = self.model._prepare_backbone_features(outputs)
        if self.model.directly_add_no_mem_embed:
            maps[-1] = maps[-1] + self.model.no_mem_embed
        planes = [
            part.float().permute(1, 2, 0).unflatten(2, size) for part, size in zip(maps, sizes, strict=True)
        ]
        fine, middle, coarse = planes
        return [
            Embedding((coarse[place].clone(), middle[place].clone(), fine[place].clone()), geometry)
            for place, (_, geometry) in enumerate(prepared)
        ]

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: PromptBatch) -> EagerDecoding:
        """Runs prompt encoder and mask decoder."""
        encoder, decoder = self.model.sam_prompt_encoder, self.model.sam_mask_decoder
        masks = None if prompts.mask_logits is None else to_device(prompts.mask_logits, self.device)
        sparse, dense = encoder(points=self._points(prompts), boxes=None, masks=masks)
        coarse, middle, fine = (part[None] for part in embedding.features)
        with autocast(self.identity.precision, self.device):
            logits, ious, _, _ = decoder.predict_masks(
                image_embeddings=coarse,
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                repeat_image=len(prompts) > 1,
                high_res_features=[fine, middle],
            )
        logits, ious = logits.float(), ious.float()
        if decoder.dynamic_multimask_via_stability:
            single, quality = decoder._dynamic_multimask_via_stability(logits, ious)
            logits = torch.cat([single, logits[:, 1:]], dim=1)
            ious = torch.cat([quality, ious[:, 1:]], dim=1)
        return EagerDecoding(ious, logits)

    def _points(self, prompts: PromptBatch) -> tuple[Tensor, Tensor] | None:
        """Points and labels of the prompts, the corners of their boxes first."""
        points, labels = [], []
        if prompts.boxes is not None:
            points.append(prompts.boxes.reshape(-1, 2, 2))
            labels.append(torch.tensor(_BOX_LABELS, dtype=torch.int32).expand(len(prompts), -1))
        if prompts.points is not None and prompts.labels is not None:
            points.append(prompts.points)
            labels.append(prompts.labels)
        if not points:
            return None
        placed, kinds = torch.cat(points, dim=1).float(), torch.cat(labels, dim=1)
        return to_device(placed, self.device), to_device(kinds, self.device)
