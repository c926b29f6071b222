"""Prompt templates for texts, and the cache of text vectors."""

from __future__ import annotations

import enum
import functools
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

# A small selection of the full set, at a fraction of its cost.
SIMPLE = (
    "a photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "art of the {}.",
    "there is a {} in the scene.",
)


class TextTemplates(enum.StrEnum):
    """Sentences that a text is inserted into; their vectors are averaged."""

    NONE = "none"
    SIMPLE = "simple"
    FULL = "full"

    def fill(self, text: str) -> list[str]:
        """The sentences of a text."""
        if self is TextTemplates.NONE:
            return [text]
        if self is TextTemplates.SIMPLE:
            return [template.format(text) for template in SIMPLE]
        return [template(text) for template in _full()]


@functools.cache
def _full() -> tuple[Any, ...]:
    """The sentences that CLIP's authors use for zero-shot classification, as open_clip keeps them."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(OPENAI_IMAGENET_TEMPLATES)


class VectorCache:
    """LRU cache of vectors; thread-safe."""

    def __init__(self, entries: int) -> None:
        self._most = entries
        self._vectors: OrderedDict[Hashable, tuple[Vector, bool]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: Hashable) -> tuple[Vector, bool] | None:
        """A vector and whether its text was truncated."""
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
            return self._vectors.get(key)

    def put(self, key: Hashable, vector: Vector, truncated: bool) -> None:
        """Caches a vector, which must not be changed afterwards."""
        with self._lock:
            self._vectors[key] = (vector, truncated)
            self._vectors.move_to_end(key)
            while len(self._vectors) > self._most:
                self._vectors.popitem(last=False)
