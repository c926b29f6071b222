"""Our engines in this process, as the services run them but without gRPC between.

The settings are those of the services: with `REGIONSEARCH_SEGMENTER_MODEL=sam_vit_b` and
`REGIONSEARCH_EMBEDDER_MODEL=ViT-B-32` the big models are measured.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import rle
from evaluation.rle import BoolArray, Rle
from evaluation.system import InProcess, Proposals, Regions, VectorArray
from regionsearch.images import Pixels
from regionsearch.masks import RunLengthMask, mask_box
from services.embedder import service as embedder
from services.embedder import tasks
from services.embedder.crop_plan import pixel_box
from services.embedder.engine import EmbedEngine
from services.embedder.options import CropPolicy
from services.embedder.settings import EmbedderSettings
from services.segmenter import service as segmenter
from services.segmenter.call_context import LazyImage
from services.segmenter.engine import SegmentEngine
from services.segmenter.everything import Region
from services.segmenter.options import SelectionOptions
from services.segmenter.prompts import Prompt
from services.segmenter.regions import select_regions
from services.segmenter.settings import SegmenterSettings


class EngineSegmenter:
    """The segmenter's engine."""

    def __init__(self, settings: SegmenterSettings) -> None:
        self._backend, self._defaults = segmenter.load(settings)
        self._selection = SelectionOptions()

        async def start() -> SegmentEngine:
            return SegmentEngine(self._backend, settings.batching, cache_bytes=settings.cache_bytes)

        self._engine = _runner().run(start())

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.Segmenter`."""
        identity = self._backend.identity
        return {
            "code": "services.segmenter",
            "model": f"{identity.family}/{identity.variant}",
            "sha256": identity.digest,
            "precision": identity.precision,
            "device": identity.device,
            "zoom": self._defaults.zoom,
        }

    def everything(self, pixels: Pixels) -> Proposals:
        """See `evaluation.system.Segmenter`."""
        answer = _runner().run(
            self._engine.everything(_image(pixels), self._defaults.everything, mode=self._defaults.mode)
        )
        ranked = sorted(answer.regions, key=lambda region: region.rank, reverse=True)
        kept = select_regions(answer.regions, self._selection)
        return Proposals(_regions(ranked), _regions(kept))

    def features(self, pixels: Pixels, masks: Sequence[Rle]) -> VectorArray:
        """See `evaluation.hashing.FeatureSegmenter`."""
        runs = [RunLengthMask.from_mask(rle.decode(mask)) for mask in masks]
        return _runner().run(self._engine.pool(_image(pixels), runs, level=0)).features

    def click(self, pixels: Pixels, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """See `evaluation.system.Segmenter`."""
        prompts = [Prompt(np.array([point], dtype=float), np.ones(1, dtype=np.int32)) for point in points]
        asked = self._engine.prompts(_image(pixels), prompts, multimask=True, zoom=self._defaults.zoom)
        answer = _runner().run(asked)
        return [_rle(candidates[0].region) for candidates in answer.answers]


class EngineEmbedder:
    """The embedder's engine."""

    def __init__(self, settings: EmbedderSettings) -> None:
        backends = embedder.load(settings)
        self._backend = backends[0]

        async def start() -> EmbedEngine:
            return EmbedEngine(backends, settings.batching)

        self._engine = _runner().run(start())

    def describe(self) -> dict[str, Any]:
        """See `evaluation.system.Embedder`."""
        files = self._backend.files
        return {
            "code": "services.embedder",
            "model": f"{files.family}/{files.variant}",
            "sha256": files.digest,
            "precision": self._backend.precision,
            "device": str(self._backend.device),
            "cut_offs": dict(files.cut_offs),
        }

    def regions(self, pixels: Pixels, masks: Sequence[Rle], policy: str) -> VectorArray:
        """See `evaluation.system.Embedder`."""
        if not masks:
            return np.zeros((0, self._backend.dimension), dtype=np.float32)
        cut = [_cut(rle.decode(mask)) for mask in masks]
        boxes = np.array([box for box, _ in cut], dtype=np.float32)
        regions = tasks.Regions(pixels, boxes, [inside for _, inside in cut])
        return _runner().run(self._engine.embed_regions(lambda: regions, len(masks), CropPolicy(policy)))

    def image(self, pixels: Pixels) -> VectorArray:
        """See `evaluation.system.Embedder`."""
        vector: VectorArray = _runner().run(self._engine.embed_images([lambda: pixels]))[0]
        return vector

    def texts(self, texts: Sequence[str]) -> VectorArray:
        """See `evaluation.system.Embedder`."""
        vectors: VectorArray = _runner().run(self._engine.embed_texts(texts))[0]
        return vectors


def engine_system(models: Path | None = None, policy: str = "blur") -> InProcess:
    """Our engines on the models of the services' settings, or on the pocket models of a folder."""
    if models is None:
        return InProcess(EngineSegmenter(SegmenterSettings()), EngineEmbedder(EmbedderSettings()), policy)
    return InProcess(
        EngineSegmenter(SegmenterSettings(model=str(models / "segmenter.json"))),
        EngineEmbedder(EmbedderSettings(model=str(models / "embedder.json"))),
        policy,
    )


@cache
def _runner() -> asyncio.Runner:
    """The event loop that the engines live on."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def _image(pixels: Pixels) -> LazyImage:
    return LazyImage(hashlib.sha256(pixels.tobytes()).hexdigest(), lambda: pixels)


def _regions(found: Sequence[Region]) -> Regions:
    return Regions([_rle(region) for region in found], np.array([region.rank[0] for region in found]))


def _rle(region: Region) -> Rle:
    return region.runs.rle


def _cut(mask: BoolArray) -> tuple[tuple[float, float, float, float], BoolArray]:
    """The box of a mask, and the mask inside it."""
    box = mask_box(mask)
    if box is None:
        raise ValueError("an empty mask cannot be embedded")
    inside = pixel_box(box, *mask.shape)
    return box, mask[inside.top : inside.bottom, inside.left : inside.right]
