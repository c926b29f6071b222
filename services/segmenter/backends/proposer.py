"""Where to look, said by the image itself: in place of a blind grid a small head on the image embedding, or a
detector.

Everything mode asks a promptable model about points. Most points of a grid lie on background, or on an object
that another point has found. Source: Zhang et al. 2023, "MobileSAMv2: Faster Segment Anything to Everything"
(object-aware prompts).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from regionsearch.images import Pixels
from services.segmenter.backends.base import Embedding, Prompts
from services.segmenter.backends.pyramid import convolution
from services.segmenter.options import EverythingOptions

MAX_PEAKS = 48
LEAST_SCORE = 0.08  # below that a peak is noise
MAX_BOXES = 32
LEAST_IOU = 0.1  # below that a box is noise
_UNIT = 4.0  # cells, of the distances to the sides of a box
_NAMED = 1024  # boxes that are compared
_SAME_BOX = 0.6  # IoU from which two of them mean one object


class ProposalHead(nn.Module):
    """Says of each cell of an image embedding how far inside of an object it lies, and that object's box.

    Args:
        channels: of the image embedding.
        width: of the layers between.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(channels, width), convolution(width, width), nn.Conv2d(width, 6, kernel_size=1)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) to maps (B, 6, h, w).

        First two logits: of the depth, low outside of objects and highest in their middles, and of the IoU
        that the cell's box has with the object's. Then how far left, top, right and bottom of that box are
        from the cell's middle, in cells.
        """
        logits, distances = self.layers(embeddings).split([2, 4], dim=1)
        return torch.cat([logits, _UNIT * F.softplus(distances)], dim=1)


class HeadProposer:
    """The objects that a :class:`ProposalHead` sees, as points and boxes.

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
    def propose(self, embedding: Embedding, prepared: Any, options: EverythingOptions) -> Prompts:
        """Boxes, and points for what they miss; two copies to the host."""
        features, geometry = embedding.features[0], embedding.geometry
        with self._autocast():
            maps = self.head(features[None])[0].float()
        cell = geometry.padded_size[0] / features.shape[1]
        rows, columns = (max(1, round(side / cell)) for side in geometry.input_size)
        maps = maps[:, :rows, :columns]
        found = find_points(maps, MAX_PEAKS), find_boxes(maps, MAX_BOXES)
        points, boxes = (part.cpu().numpy().astype(np.float64) for part in found)
        points, boxes = points[points[:, 0] >= LEAST_SCORE, 1:], boxes[boxes[:, 0] >= LEAST_IOU, 1:]
        (height, width), (input_height, input_width) = geometry.image_size, geometry.input_size
        scale = np.array([width / input_width, height / input_height])
        # Pixels are counted from the middle of the first one; the edges of boxes from its corner.
        points = ((points * cell - 0.5) * scale).clip(0, [width - 1, height - 1])
        boxes = (boxes.reshape(-1, 2, 2) * cell * scale).clip(0, [width, height])
        return by_area(boxes.reshape(-1, 4)), points


def by_area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes (n, 4) from small to large: a batch of prompts is drawn in windows of one size."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(boxes[sides.prod(axis=1).argsort(kind="stable")])


def find_points(maps: Tensor, most: int) -> Tensor:
    """Where the maps of a head (6, h, w) are deepest.

    Returns:
        float32 (at most `most`, 3): score, x and y in cells, best first.
    """
    found = peaks(maps[0].sigmoid(), most)
    return torch.cat([found[:, :1], found[:, 1:] + 0.5], dim=1)


def find_boxes(maps: Tensor, most: int) -> Tensor:
    """The boxes that the maps of a head (6, h, w) name, without duplicates.

    Returns:
        float32 (at most `most`, 5): the IoU expected of a box and the box in cells, best first.
    """
    scores = maps[1].sigmoid().flatten()
    best, places = scores.topk(min(_NAMED, len(scores)))
    boxes = boxes_of(maps[None, 2:])[0].flatten(0, 1)[places]
    kept = nms(boxes, best, _SAME_BOX)[:most]
    return torch.cat([best[kept, None], boxes[kept]], dim=1)


def boxes_of(distances: Tensor) -> Tensor:
    """Distances (B, 4, h, w) from the middles of cells to boxes (B, h, w, 4), in cells."""
    height, width = distances.shape[2:]
    x = torch.arange(width, device=distances.device) + 0.5
    y = (torch.arange(height, device=distances.device) + 0.5)[:, None]
    left, top, right, bottom = distances.unbind(dim=1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def peaks(scores: Tensor, most: int) -> Tensor:
    """The cells of a map (h, w) that are the highest among their eight neighbours.

    Returns:
        float32 (min(`most`, cells), 3): score, column, row, best first; of score 0 where there are fewer.
    """
    highest = F.max_pool2d(scores[None], kernel_size=3, stride=1, padding=1)[0]
    best, places = (scores * (scores == highest)).flatten().topk(min(most, scores.numel()))
    columns = scores.shape[1]
    return torch.stack([best, places % columns, places // columns], dim=1)
