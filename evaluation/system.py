"""The port between the measuring and the measured.

A `System` cuts images into regions and makes an `Index` of them that can be asked. `InProcess` builds one
from a segmenter and an embedder in this process; `evaluation.gateway` is one behind a URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.dataset import Sample
from evaluation.rle import FloatArray, Rle
from regionsearch.images import Pixels

VectorArray = NDArray[np.float32]

# Told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Regions:
    """Regions of one image, best first.

    Attributes:
        masks: One each.
        quality: What they are ranked by, predicted IoU times stability, (regions,).
    """

    masks: Sequence[Rle]
    quality: FloatArray

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, count: int) -> Regions:
        """The first `count`."""
        return Regions(self.masks[:count], self.quality[:count])


@dataclass(frozen=True)
class Proposals:
    """What everything mode made of one image.

    Attributes:
        found: All regions, best first.
        kept: Those that are worth indexing, best first.
    """

    found: Regions
    kept: Regions


@dataclass(frozen=True)
class TextScores:
    """Cosines of texts.

    Attributes:
        regions: (texts, all indexed regions, in the order of the samples).
        images: (texts, samples), with the whole image's vector.
    """

    regions: FloatArray
    images: FloatArray


class Index(Protocol):
    """The regions of a data set, ready to be asked."""

    regions: Sequence[Regions]  # what was indexed, one entry for each sample

    def text_scores(self, texts: Sequence[str]) -> TextScores:
        """Every text against every region and every whole image."""
        ...

    def region_scores(self, rows: Sequence[int]) -> FloatArray:
        """Every region (columns) by its likeness to those in `rows`; -inf where it was not retrieved."""
        ...


class System(Protocol):
    """What is measured."""

    def describe(self) -> dict[str, Any]:
        """Names, models and digests, for the report; `cut_off` of confident matches if the model has one."""
        ...

    def proposals(self, sample: Sample) -> Proposals:
        """Everything mode."""
        ...

    def click(self, sample: Sample, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """The mask that one foreground click (x, y) selects, for each of several independent clicks."""
        ...

    def index(self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress) -> Index:
        """Indexes the kept regions of each sample."""
        ...

    def timings(self) -> dict[str, dict[str, float]]:
        """Per stage: median and 95th percentile, milliseconds."""
        ...


class Segmenter(Protocol):
    """Cuts pixels into regions."""

    def describe(self) -> dict[str, Any]:
        """Model and digest."""
        ...

    def everything(self, pixels: Pixels) -> Proposals:
        """Everything mode."""
        ...

    def click(self, pixels: Pixels, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """One mask for each foreground click (x, y): the candidate with the highest predicted IoU."""
        ...


class Embedder(Protocol):
    """Turns regions, images and words into unit vectors of one space."""

    def describe(self) -> dict[str, Any]:
        """Model and digest."""
        ...

    def regions(self, pixels: Pixels, masks: Sequence[Rle], policy: str) -> VectorArray:
        """(masks, dimension)."""
        ...

    def image(self, pixels: Pixels) -> VectorArray:
        """(dimension,)."""
        ...

    def texts(self, texts: Sequence[str]) -> VectorArray:
        """(texts, dimension)."""
        ...


@dataclass
class Stopwatch:
    """Durations by stage."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds how long the body takes."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)

    def summary(self) -> dict[str, dict[str, float]]:
        """Per stage: median and 95th percentile, milliseconds."""
        return {
            stage: {
                "p50_ms": float(np.percentile(values, 50) * 1e3),
                "p95_ms": float(np.percentile(values, 95) * 1e3),
            }
            for stage, values in self.seconds.items()
        }


@dataclass
class VectorIndex:
    """An `Index` that compares exactly, in memory.

    Attributes:
        regions: What was indexed, one entry for each sample.
        region_vectors: (all regions, dimension).
        image_vectors: (samples, dimension).
        embed_texts: From texts to (texts, dimension).
    """

    regions: Sequence[Regions]
    region_vectors: VectorArray
    image_vectors: VectorArray
    embed_texts: Callable[[Sequence[str]], VectorArray]

    def text_scores(self, texts: Sequence[str]) -> TextScores:
        """See `Index`."""
        vectors = self.embed_texts(texts)
        return TextScores(_cosines(vectors, self.region_vectors), _cosines(vectors, self.image_vectors))

    def region_scores(self, rows: Sequence[int]) -> FloatArray:
        """See `Index`."""
        return _cosines(self.region_vectors[list(rows)], self.region_vectors)


@dataclass
class InProcess:
    """A segmenter and an embedder in this process.

    Attributes:
        segmenter: Cuts.
        embedder: Makes vectors.
        policy: Crop policy of the indexed regions.
    """

    segmenter: Segmenter
    embedder: Embedder
    policy: str = "blur"
    watch: Stopwatch = field(default_factory=Stopwatch)

    def describe(self) -> dict[str, Any]:
        """See `System`."""
        embedder = self.embedder.describe()
        cut_offs = embedder.pop("cut_offs", {})
        return {
            "segmenter": self.segmenter.describe(),
            "embedder": embedder,
            "crop_policy": self.policy,
            "cut_off": cut_offs.get(self.policy),
        }

    def proposals(self, sample: Sample) -> Proposals:
        """See `System`."""
        pixels = sample.pixels()
        with self.watch.measure("everything mode, per image"):
            return self.segmenter.everything(pixels)

    def click(self, sample: Sample, points: Sequence[tuple[int, int]]) -> Sequence[Rle]:
        """See `System`."""
        return self.segmenter.click(sample.pixels(), points)

    def index(
        self, samples: Sequence[Sample], proposals: Sequence[Proposals], progress: Progress
    ) -> VectorIndex:
        """See `System`."""
        vectors, images = [], []
        for done, (sample, proposed) in enumerate(zip(samples, proposals, strict=True)):
            progress(f"embedding ({self.policy})", done, len(samples))
            pixels = sample.pixels()
            with self.watch.measure("embedding, all regions of an image"):
                vectors.append(self.embedder.regions(pixels, proposed.kept.masks, self.policy))
            images.append(self.embedder.image(pixels))
        kept = [proposed.kept for proposed in proposals]
        return VectorIndex(kept, np.concatenate(vectors), np.stack(images), self.embedder.texts)

    def timings(self) -> dict[str, dict[str, float]]:
        """See `System`."""
        return self.watch.summary()


def _cosines(queries: VectorArray, items: VectorArray) -> FloatArray:
    return (queries @ items.T).astype(np.float64)
