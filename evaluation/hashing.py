"""What region hashing brings: a segmenter's features next to the embeddings, and binary codes of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import threadpoolctl

from evaluation.dataset import Sample
from evaluation.rle import Rle
from evaluation.system import InProcess, Progress, Proposals, System, VectorArray, VectorIndex
from regionsearch.images import Pixels
from services.searcher.embedded.index.binary import Codec, train_codec
from services.searcher.types import CodeMethod, CodeSpec

BITS = 256
METHODS = {"learned": CodeMethod.LEARNED, "ITQ": CodeMethod.ITQ}


class FeatureSegmenter(Protocol):
    """A segmenter that has features."""

    def features(self, pixels: Pixels, masks: Sequence[Rle]) -> VectorArray:
        """Of the whole image, then of each mask, of unit length, (1 + masks, channels)."""
        ...


def hashing_systems(system: InProcess, segmenter: FeatureSegmenter, weight: float) -> dict[str, System]:
    """The systems to compare with `system`, by name.

    Args:
        system: Whose embeddings they begin with.
        segmenter: Makes the features; the system's own.
        weight: Of features, where that of embeddings is 1.
    """
    embeddings = _Derived(system)
    features = _WithFeatures(system, embeddings, segmenter, weight)
    name = f"with {weight:g} × features"
    codes = {
        f"{prefix}codes ({method})": _Coded(system, vectors, METHODS[method])
        for prefix, vectors in (("", embeddings), (f"{name}, ", features))
        for method in METHODS
    }
    return {name: features, **codes}


@dataclass
class _Derived:
    """A system with the segmenter and the proposals of another one; its index is made once."""

    base: InProcess
    made: VectorIndex | None = field(default=None, init=False)

    @property
    def segmenter(self) -> object:
        return self.base.segmenter

    def describe(self) -> dict[str, Any]:
        return self.base.describe()

    def proposals(self, sample: Sample) -> Proposals:
        return self.base.proposals(sample)

    def click(self, sample: Sample, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        return self.base.click(sample, points)

    def timings(self) -> dict[str, dict[str, float]]:
        return {}

    def index(
        self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress
    ) -> VectorIndex:
        if self.made is None:
            self.made = self._make(samples, proposals, progress)
        return self.made

    def _make(
        self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress
    ) -> VectorIndex:
        return self.base.index(samples, proposals, progress)


@dataclass
class _WithFeatures(_Derived):
    """Embeddings with features behind them, as the gateway joins them."""

    embeddings: _Derived
    features: FeatureSegmenter
    weight: float

    def _make(
        self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress
    ) -> VectorIndex:
        inner = self.embeddings.index(samples, proposals, progress)
        found = []
        for done, (sample, proposed) in enumerate(zip(samples, proposals, strict=True)):
            progress("features", done, len(samples))
            found.append(self.features.features(sample.pixels(), proposed.kept.masks))
        images = np.stack([one[0] for one in found])
        regions = np.concatenate([one[1:] for one in found])

        def join(vectors: VectorArray, features: VectorArray) -> VectorArray:
            joined: VectorArray = np.concatenate([vectors, self.weight * features], axis=1, dtype=np.float32)
            return joined / np.float32(np.hypot(1.0, self.weight))

        return VectorIndex(
            inner.regions,
            join(inner.region_vectors, regions),
            join(inner.image_vectors, images),
            lambda texts: _padded(inner.embed_texts(texts), regions.shape[1]),
        )


@dataclass
class _Coded(_Derived):
    """Codes of another system's vectors, trained on its regions: scores are 1 - 2 * distance / bits."""

    vectors: _Derived
    method: CodeMethod

    def _make(
        self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress
    ) -> VectorIndex:
        inner = self.vectors.index(samples, proposals, progress)
        progress("training codes", 0, 1)
        most = BITS if self.method is CodeMethod.LEARNED else inner.region_vectors.shape[1] // 8 * 8
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):  # as in a searcher
            codec = train_codec(CodeSpec(self.method, min(BITS, most)), inner.region_vectors)
        return VectorIndex(
            inner.regions,
            _signs(codec, inner.region_vectors),
            _signs(codec, inner.image_vectors),
            lambda texts: _signs(codec, inner.embed_texts(texts)),
        )


def _padded(vectors: VectorArray, channels: int) -> VectorArray:
    return np.pad(vectors, ((0, 0), (0, channels)))


def _signs(codec: Codec, vectors: VectorArray) -> VectorArray:
    bits = np.unpackbits(codec.encode(vectors), axis=1).astype(np.float32)
    return (2 * bits - 1) / np.float32(np.sqrt(bits.shape[1]))
