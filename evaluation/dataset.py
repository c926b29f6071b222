"""What a system is measured on: images, the things in them, and where those are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from evaluation.rle import Rle
from regionsearch.errors import invalid
from regionsearch.images import Pixels, decode_image

Split = Literal["tune", "test"]


@dataclass(frozen=True)
class Instance:
    """One thing in an image.

    Attributes:
        category: Index into `Dataset.categories`.
        mask: Its visible pixels, at the size of the image.
    """

    category: int
    mask: Rle


@dataclass(frozen=True)
class Sample:
    """One image and its truth.

    Attributes:
        path: The image's file.
        height: Pixels, after EXIF orientation.
        width: Pixels, after EXIF orientation.
        split: `tune` is for choosing thresholds, `test` for reporting what they reach.
        instances: The things in it.
        caption: A sentence about the whole image; empty where the data set has none.
        absent: Categories that are known not to be in the image; None where everything is annotated.
    """

    path: Path
    height: int
    width: int
    split: Split
    instances: tuple[Instance, ...]
    caption: str = ""
    absent: tuple[int, ...] | None = None

    @property
    def categories(self) -> tuple[int, ...]:
        """The categories that occur in the image, each once, ascending."""
        return tuple(sorted({instance.category for instance in self.instances}))

    def read(self) -> bytes:
        """The encoded file."""
        return self.path.read_bytes()

    def pixels(self) -> Pixels:
        """uint8 RGB (height, width, 3).

        Raises:
            RegionSearchError: UNSUPPORTED_IMAGE, TOO_LARGE, or INVALID_ARGUMENT when the image has not
                the size of its truth.
        """
        pixels = decode_image(self.read(), field=self.path.name)
        if pixels.shape[:2] != (self.height, self.width):
            raise invalid(
                "data",
                f"{self.path} is {pixels.shape[1]} x {pixels.shape[0]} pixels upright, its truth says "
                f"{self.width} x {self.height}; correct one of them",
            )
        return pixels


@dataclass(frozen=True)
class Dataset:
    """Images with one vocabulary of names.

    Attributes:
        name: What reports call it.
        categories: Names; they are the text queries.
        samples: The images, in a fixed order.
    """

    name: str
    categories: tuple[str, ...]
    samples: tuple[Sample, ...]

    def subset(self, limit: int, seed: int) -> Dataset:
        """At most `limit` images, drawn without replacement by `seed`, in the old order."""
        if limit >= len(self.samples):
            return self
        drawn = np.random.default_rng(seed).choice(len(self.samples), limit, replace=False)
        return replace(self, samples=tuple(self.samples[i] for i in sorted(drawn)))

    def digest(self) -> str:
        """SHA-256 over the images' bytes, the truth and the names: equal digests, equal task."""
        digest = hashlib.sha256(json.dumps(self.categories).encode())
        for sample in self.samples:
            truth = [
                [i.category, i.mask["size"][0], i.mask["size"][1], i.mask["counts"].decode()]
                for i in sample.instances
            ]
            digest.update(hashlib.sha256(sample.read()).digest())
            absent = [] if sample.absent is None else [sample.absent]
            digest.update(json.dumps([sample.split, sample.caption, truth, *absent]).encode())
        return digest.hexdigest()


def alternate_splits(count: int) -> Sequence[Split]:
    """Splits for data that has none: every other image is for tuning."""
    return ["tune" if index % 2 == 0 else "test" for index in range(count)]
