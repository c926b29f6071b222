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
        nbytes: Size of the decoded pixels.
    """

    key: str
    decode: Callable[[], Pixels]
    nbytes: int = 0


@dataclass(frozen=True)
class Everything:
    """Result of everything mode; `features` is as of `Pooled`, or None if not requested."""

    regions: list[Region]
    features: NDArray[np.float32] | None
    image_size: Size
    cached: bool


@dataclass(frozen=True)
class Prompted:
    """Results of prompts or phrases, each best first.

    `features` has one array (candidates, channels) for each of them; `truncated` says of each phrase
    whether it is longer than the model reads.
    """

    answers: list[list[PromptedRegion]]
    features: list[NDArray[np.float32]] | None
    image_size: Size
    cached: bool
    truncated: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Pooled:
    """Features of the whole image and then of each known region, float32 (1 + regions, channels)."""

    features: NDArray[np.float32]
    image_size: Size
    cached: bool


@dataclass(frozen=True)
class CallContext:
    """Priority and deadline of a call.

    Attributes:
        priority: Interactive calls run before bulk calls; everything mode runs after interactive prompts.
        deadline: On the event loop's clock, in seconds; None for no deadline.
        continuation: Part of the call has already run, so that a full queue does not reject the rest.
    """

    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    continuation: bool = False


INTERACTIVE = CallContext()
