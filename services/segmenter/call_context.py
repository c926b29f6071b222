"""Arguments and results of the engine's calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regionsearch.images import Pixels
from services.runtime.batcher import Priority
from services.segmenter.backends.base import Size
from services.segmenter.everything import Region
from services.segmenter.prompts import PromptedRegion


@dataclass(frozen=True)
class LazyImage:
    """An image that is decoded only when its pixels are needed.

    Attributes:
        key: Identity of its content.
        decode: Returns uint8 RGB (height, width, 3); may take long and may raise.
        nbytes: Memory that the pixels take.
    """

    key: str
    decode: Callable[[], Pixels]
    nbytes: int = 0


@dataclass(frozen=True)
class Everything:
    """Answer of everything mode; `features` is float32 (regions, channels) when asked for."""

    regions: list[Region]
    features: NDArray[np.float32] | None
    image_size: Size
    cached: bool


@dataclass(frozen=True)
class Prompted:
    """Answers to prompts, each best first; `features` has one array (candidates, channels) per prompt."""

    answers: list[list[PromptedRegion]]
    features: list[NDArray[np.float32]] | None
    image_size: Size
    cached: bool


@dataclass(frozen=True)
class CallContext:
    """Priority and deadline of a call.

    Attributes:
        priority: Interactive calls go before bulk calls; everything mode goes behind interactive prompts.
        deadline: Time of the event loop's clock.
        continuation: Part of the call has been done; a full queue does not refuse the rest.
    """

    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    continuation: bool = False


INTERACTIVE = CallContext()
