"""Sentences that a text is put into, and the vectors of texts that were asked for before."""

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

# One sentence each for the ways in which things are seen; a cheap stand-in for the full set.
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
    """Which sentences a text is put into; their vectors are averaged."""

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
    """Least recently used vectors go first. Safe to use from several threads."""

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
        """Keeps a vector; the caller must not change it afterwards."""
        with self._lock:
            self._vectors[key] = (vector, truncated)
            self._vectors.move_to_end(key)
            while len(self._vectors) > self._most:
                self._vectors.popitem(last=False)
