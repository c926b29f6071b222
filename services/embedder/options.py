"""How regions are cropped and texts are phrased; without torch."""

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


class CropPolicy(enum.StrEnum):
    """How a region is shown to the image tower; part of a collection's identity."""

    BBOX = "bbox"  # the box alone, stretched to the square
    MASKED_WHITE = "masked_white"  # the square around the box, white outside the object
    MASKED_BLACK = "masked_black"
    MASKED_MEAN = "masked_mean"  # outside the object: the mean colour of the model's training images
    BLUR = "blur"  # the square with context, blurred outside the object
    CONTEXT = "context"  # the square with context, untouched
    RED_CIRCLE = "red_circle"  # the square with wide context and a red ellipse around the box
    ENSEMBLE = "ensemble"  # mean of the normalised vectors of BBOX and BLUR; two crops per region

    @property
    def parts(self) -> tuple[CropPolicy, ...]:
        """The policies whose vectors are averaged; the policy itself unless it is the ensemble."""
        return (CropPolicy.BBOX, CropPolicy.BLUR) if self is CropPolicy.ENSEMBLE else (self,)


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
