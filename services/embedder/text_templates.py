"""Prompt templates for texts."""

from __future__ import annotations

import enum
import functools
from typing import Any

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
