"""What is compared as region hashing: joined vectors, and codes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evaluation.hashing import hashing_systems
from evaluation.system import VectorArray, VectorIndex
from services.searcher.embedded.index import code_training
from tests.searcher.clusters import clustered

CHANNELS, IMAGES, EACH = 6, 10, 12


class Base:
    """A system of random vectors, twelve regions an image."""

    segmenter: Any = None
    asked = 0

    def index(self, samples: Sequence[Any], proposals: Sequence[Any], progress: Any) -> VectorIndex:
        self.asked += 1
        regions = [proposal.kept for proposal in proposals]
        vectors = clustered(IMAGES * EACH)
        return VectorIndex(regions, vectors, vectors[::EACH], lambda texts: clustered(len(texts), seed=2))


class Image:
    """A sample and its proposals at once; its features say which image it is."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.kept = self
        self.masks = [number] * EACH

    def pixels(self) -> int:
        return self.number


class Segmenter:
    def features(self, pixels: int, masks: Sequence[int]) -> VectorArray:
        rows = np.zeros((1 + len(masks), CHANNELS), np.float32)
        rows[:, pixels % CHANNELS] = 1
        return rows


def test_features_are_joined_and_codes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_training, "_STEPS", 20)
    base: Any = Base()
    images: Any = [Image(number) for number in range(IMAGES)]
    systems = hashing_systems(base, Segmenter(), weight=0.5)
    assert list(systems) == [
        "with 0.5 × features",
        "codes (learned)",
        "codes (ITQ)",
        "with 0.5 × features, codes (learned)",
        "with 0.5 × features, codes (ITQ)",
    ]
    made = {name: system.index(images, images, lambda *_: None) for name, system in systems.items()}
    assert base.asked == 1
    plain = base.index(images, images, None)
    both = made["with 0.5 × features"]
    same = both.region_scores([0])[0, 1:EACH]
    expected = (plain.region_scores([0])[0, 1:EACH] + 0.25) / 1.25
    assert same == pytest.approx(expected, abs=1e-3)
    words, plain_words = both.text_scores(["a", "b"]).regions, plain.text_scores(["a", "b"]).regions
    assert words == pytest.approx(plain_words / np.sqrt(1.25), abs=1e-3)
    codes = made["codes (learned)"].region_scores([3])[0]
    assert codes[3] == pytest.approx(1)
    assert codes * 128 == pytest.approx(np.round(codes * 128), abs=1e-3)
