"""Where to look, said by the image itself: in place of a blind grid a small head on the image embedding, or a
detector.

Everything mode asks a promptable model about points. Most points of a grid lie on background, or on an object
that another point has found. Source: Zhang et al. 2023, "MobileSAMv2: Faster Segment Anything to Everything"
(object-aware prompts).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from regionsearch.images import Pixels
from services.segmenter.backends.base import DecodedMasks, Embedding
from services.segmenter.backends.pyramid import convolution
from services.segmenter.options import EverythingOptions

MAX_PEAKS = 48
LEAST_SCORE = 0.08  # below that a peak is noise

Proposals = NDArray[np.float64] | DecodedMasks
"""Points (n, 2) as x, y or boxes (n, 4) as x_min, y_min, x_max, y_max, to ask the model about, or masks
without duplicates; in pixels of the embedded image, best first, at most `MAX_PROPOSALS`.
"""


class Proposer(Protocol):
    """Says where the objects of an image are."""

    sees_pixels: bool
    """Whether `prepare` makes anything of the pixels; if not, nobody needs to decode them for it."""

    def prepare(self, image: Pixels) -> Any:
        """What `propose` needs of an image, uint8 RGB (H, W, 3). Any thread."""

    def propose(self, embedding: Embedding, prepared: Any, options: EverythingOptions) -> Proposals:
        """Proposes objects of an embedded image; on the device."""


class ProposalHead(nn.Module):
    """Maps an image embedding to how far inside of an object each of its cells lies.

    Args:
        channels: of the image embedding.
        width: of the layers between.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(channels, width), convolution(width, width), nn.Conv2d(width, 1, kernel_size=1)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) to logits (B, h, w): low outside of objects, highest in their middles."""
        depths: Tensor = self.layers(embeddings)[:, 0]
        return depths


class PeakProposer:
    """The peaks of a :class:`ProposalHead`'s answer, as points.

    Args:
        head: The network, on the device.
        autocast: Makes the context that the network computes in.
    """

    sees_pixels = False

    def __init__(self, head: ProposalHead, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.head = head
        self._autocast = autocast

    def prepare(self, image: Pixels) -> None:
        """Nothing: the embedding says it all."""

    @torch.inference_mode()
    def propose(self, embedding: Embedding, prepared: Any, options: EverythingOptions) -> NDArray[np.float64]:
        """At most `MAX_PEAKS` points; one copy to the host."""
        features, geometry = embedding.features[0], embedding.geometry
        with self._autocast():
            scores = self.head(features[None])[0].float().sigmoid()
        cell = geometry.padded_size[0] / features.shape[1]
        rows, columns = (max(1, round(side / cell)) for side in geometry.input_size)
        found = peaks(scores[:rows, :columns], MAX_PEAKS).cpu().numpy().astype(np.float64)
        x, y = found[found[:, 0] >= LEAST_SCORE, 1:].T
        # The middle of a cell; pixels are counted from the middle of the first one.
        (height, width), (input_height, input_width) = geometry.image_size, geometry.input_size
        points = ((np.stack([x, y], axis=1) + 0.5) * cell - 0.5) * [
            width / input_width,
            height / input_height,
        ]
        clipped: NDArray[np.float64] = points.clip(0, [width - 1, height - 1])
        return clipped


def peaks(scores: Tensor, most: int) -> Tensor:
    """The cells of a map (h, w) that are the highest among their eight neighbours.

    Returns:
        float32 (min(`most`, cells), 3): score, column, row, best first; of score 0 where there are fewer.
    """
    highest = F.max_pool2d(scores[None], kernel_size=3, stride=1, padding=1)[0]
    best, places = (scores * (scores == highest)).flatten().topk(min(most, scores.numel()))
    columns = scores.shape[1]
    return torch.stack([best, places % columns, places // columns], dim=1)
