"""Our engines in this process, as the services run them but without gRPC between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from evaluation.rle import Rle
from evaluation.system import Proposals, Regions
from regionsearch.images import Pixels
from services.segmenter.backends import load_backend
from services.segmenter.everything import Region, segment_everything
from services.segmenter.loading import find_model
from services.segmenter.options import EverythingOptions, SelectionOptions
from services.segmenter.prompts import Prompt, answer_prompts, batch_prompts
from services.segmenter.selection import select_regions


class EngineSegmenter:
    """The segmenter's engine.

    Args:
        model: As the segmenter's setting of that name.
    """

    def __init__(self, model: str) -> None:
        files = find_model(model)
        self._backend = load_backend(files, _device(), "fp32")
        self._options = replace(EverythingOptions(), **files.everything)
        self._selection = SelectionOptions()

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.Segmenter`."""
        identity = self._backend.identity
        return {
            "code": "services.segmenter",
            "model": f"{identity.family}/{identity.variant}",
            "sha256": identity.digest,
            "precision": identity.precision,
            "device": identity.device,
        }

    def everything(self, pixels: Pixels) -> Proposals:
        """See `evaluation.system.Segmenter`."""
        found = segment_everything(self._backend, pixels, self._options)
        ranked = sorted(found, key=_quality, reverse=True)
        return Proposals(_regions(ranked), _regions(select_regions(found, self._selection)))

    def click(self, pixels: Pixels, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """See `evaluation.system.Segmenter`."""
        (embedding,) = self._backend.encode([self._backend.prepare(pixels)])
        prompts = [Prompt(np.array([point], dtype=float), np.ones(1, dtype=np.int32)) for point in points]
        batches = batch_prompts(
            prompts, embedding.geometry, self._backend.mask_size, self._backend.decode_batch
        )
        answers: dict[int, Region] = {}
        for places, batch in batches:
            found = answer_prompts(self._backend, embedding, batch, multimask=True)
            answers |= {place: candidates[0].region for place, candidates in zip(places, found, strict=True)}
        return [_rle(answers[place]) for place in range(len(points))]


def _quality(region: Region) -> float:
    return region.predicted_iou * region.stability_score


def _regions(found: Sequence[Region]) -> Regions:
    return Regions([_rle(region) for region in found], np.array([_quality(region) for region in found]))


def _rle(region: Region) -> Rle:
    return {"size": list(region.runs.size), "counts": region.runs.coco_rle().encode()}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
