"""Run lengths of masks that are known by a window.

COCO counts pixels column by column. Runs are found inside the window only and placed in the whole image
by arithmetic, so that a small region of a large image costs what a small region costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from regionsearch.masks import BoolMask
from services.segmenter.backends.base import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom: the indices of the outermost pixels


@dataclass(frozen=True)
class RunLengthMask:
    """A mask as large as its image, as pixel ranges in column-major order.

    Attributes:
        size: Of the image.
        starts: First pixel of each run, int64, ascending.
        stops: Pixel after each run, int64; a run ends before the next one starts.
    """

    size: Size
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def from_windows(cls, size: Size, windows: Iterable[tuple[BoolMask, int, int]]) -> RunLengthMask:
        """Runs of a mask given as windows (mask, top, left), from left to right, without overlap."""
        starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for mask, top, left in windows:
            height, width = mask.shape
            # A row of zeros above and below separates the columns.
            columns = np.zeros((width, height + 2), np.int8)
            columns[:, 1:-1] = mask.T
            changes = np.flatnonzero(np.diff(columns.reshape(-1)))
            column, row = np.divmod(changes, height + 2)
            places = (left + column) * size[0] + top + row
            starts.append(places[0::2])
            stops.append(places[1::2])
        start, stop = np.concatenate(starts), np.concatenate(stops)
        # A run that reaches the lower edge goes on at the top of the next column.
        apart = start[1:] != stop[:-1]
        first = np.ones(len(start), bool)
        first[1:] = apart
        last = np.ones(len(stop), bool)
        last[:-1] = apart
        return cls(size, start[first], stop[last])

    @classmethod
    def vote(cls, masks: Sequence[RunLengthMask], weights: Sequence[float]) -> RunLengthMask:
        """The pixels that masks of more than half of the weight have.

        Args:
            masks: Of one size, at least one.
            weights: Of the masks, none below 0; where all are 0 the result is empty.
        """
        places = np.concatenate([side for mask in masks for side in (mask.starts, mask.stops)])
        votes = np.repeat(
            [change for weight in weights for change in (weight, -weight)],
            [len(mask.starts) for mask in masks for _ in range(2)],
        )
        edges, group = np.unique(places, return_inverse=True)
        # What is left of sums that are 0 is not a majority.
        wins = np.bincount(group, votes, len(edges)).cumsum() > sum(weights) * (0.5 + 1e-9)
        flips = edges[np.diff(wins, prepend=False)]
        return cls(masks[0].size, flips[0::2], flips[1::2])

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    @property
    def box(self) -> Box:
        """(left, top, right, bottom), the indices of the outermost pixels; zeros where there is none."""
        if not len(self.starts):
            return 0, 0, 0, 0
        height = self.size[0]
        first, top = np.divmod(self.starts, height)
        last, bottom = np.divmod(self.stops - 1, height)
        whole = bool((last > first).any())  # a run that goes on in the next column touches both edges
        left, right = int(first[0]), int(last[-1])
        return left, 0 if whole else int(top.min()), right, height - 1 if whole else int(bottom.max())

    def counts(self) -> NDArray[np.int64]:
        """COCO's uncompressed counts: lengths of alternating runs of zeros and ones, beginning with zeros."""
        edges = np.empty(2 * len(self.starts) + 2, np.int64)
        edges[0], edges[-1] = 0, self.size[0] * self.size[1]
        edges[1:-1:2], edges[2:-1:2] = self.starts, self.stops
        counts = np.diff(edges)
        return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts

    def coco_rle(self) -> str:
        """COCO's compressed counts."""
        height, width = self.size
        encoded = coco.frPyObjects({"size": [height, width], "counts": self.counts().tolist()}, height, width)
        counts: bytes = encoded["counts"]
        return counts.decode("ascii")

    def to_mask(self) -> BoolMask:
        """The mask, bool (height, width)."""
        return self.columns(0, self.size[1])

    def columns(self, left: int, right: int) -> BoolMask:
        """Columns [left, right) of the mask, bool (height, right - left)."""
        height = self.size[0]
        first, last = left * height, right * height
        inside = slice(
            np.searchsorted(self.stops, first, "right"), np.searchsorted(self.starts, last, "left")
        )
        edges = np.empty(2 * len(self.starts[inside]) + 2, np.int64)
        edges[0], edges[-1] = first, last
        edges[1:-1:2], edges[2:-1:2] = self.starts[inside], self.stops[inside]
        lengths = np.diff(edges.clip(first, last))
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        return np.ascontiguousarray(flat.reshape(right - left, height).T)
