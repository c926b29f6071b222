"""The ``fastsam`` family: a detector that finds all objects of an image in one pass, used as a segmenter.

It does not have a mask decoder: prompts select among the objects it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionsearch.errors import Kind, RegionSearchError
from regionsearch.images import Pixels
from services.segmenter.backends.base import (
    DecodedMasks,
    Decoding,
    Embedding,
    Geometry,
    ModelFiles,
    ModelIdentity,
    PhraseFinder,
    PromptBatch,
    Prompts,
)
from services.segmenter.backends.detector import Detector, check_precision, detect, limits_of
from services.segmenter.backends.proposer import by_area
from services.segmenter.options import EverythingOptions

# FastSAM's own defaults. The score of a detection is what predicted IoU is for other models.
EVERYTHING: dict[str, Any] = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}


def load(files: ModelFiles, device: str, precision: str, compile_model: bool) -> FastSamBackend:
    """Loads an ONNX file; see `services.segmenter.backends.load_backend`."""
    if compile_model:
        raise RegionSearchError(
            Kind.FAILED_PRECONDITION,
            f"compile is set, and {files.weights.name} runs in ONNX Runtime, which compiles it by itself; "
            "unset compile",
            field="compile",
        )
    detector = Detector(files.weights, torch.device(device))
    check_precision(precision, detector)
    return FastSamBackend(
        detector, ModelIdentity(files.family, files.variant, files.digest, detector.precision, device)
    )


class FastSamBackend:
    """A :class:`Detector` behind :class:`~services.segmenter.backends.base.Backend`."""

    mask_threshold = 0.0
    encode_batch = decode_batch = 1
    refiner = None
    phrase_finder: PhraseFinder | None = None
    choices = EverythingOptions(**EVERYTHING)

    def __init__(self, detector: Detector, identity: ModelIdentity) -> None:
        self.identity = identity
        self.device = detector.device
        self.mask_size = detector.mask_size
        self.feature_channels = (detector.channels,)
        self.proposer = MaskProposer()
        self._detector = detector

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """See :meth:`Detector.prepare`."""
        return self._detector.prepare(image)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[tuple[Tensor, Geometry]]) -> list[Embedding]:
        """Runs the detector, one image after the other."""
        return [self._detector.embed(image) for image in prepared]

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> Decoding:
        """Not supported; see `Backend.choices`."""
        raise NotImplementedError


class MaskProposer:
    """Proposes the masks that FastSAM, as the model itself, has found."""

    sees_pixels = False

    def prepare(self, image: Pixels) -> None:
        """Nothing: the embedding says it all."""

    @torch.inference_mode()
    def propose(self, embedding: Embedding, prepared: Any, options: EverythingOptions) -> DecodedMasks:
        """Returns the masks that score more than ``pred_iou_thresh``, after NMS with ``box_nms_thresh``."""
        found = detect(embedding, options.pred_iou_thresh, options.box_nms_thresh)
        prototypes = embedding.features[-1]
        logits = (found.coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])
        middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        points = middles.cpu().numpy().astype(np.float64)
        return DecodedMasks(logits, found.scores.cpu().numpy(), points, limits_of(found.boxes))


class BoxProposer:
    """Proposes the boxes of a detector, for a model that takes boxes as prompts.

    Args:
        detector: Runs with FastSAM's own thresholds, not with those of the prompted model.
    """

    sees_pixels = True

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def prepare(self, image: Pixels) -> tuple[Tensor, Geometry]:
        """See :meth:`Detector.prepare`."""
        return self._detector.prepare(image)

    @torch.inference_mode()
    def propose(
        self, embedding: Embedding, prepared: tuple[Tensor, Geometry], options: EverythingOptions
    ) -> Prompts:
        """Returns the boxes of the detected objects."""
        seen = self._detector.embed(prepared)
        boxes = detect(seen, EVERYTHING["pred_iou_thresh"], EVERYTHING["box_nms_thresh"]).boxes
        return (by_area(boxes.cpu().numpy().astype(np.float64)),)
