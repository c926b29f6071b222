"""Masks and their encodings.

In memory a mask is a bool array (height, width) or a :class:`RunLengthMask`. On the wire and on disk it is
COCO's compressed run-length string, packed bits or a PNG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from regionsearch.errors import invalid, too_large

BoolMask = NDArray[np.bool_]
Runs = NDArray[np.int64]
Size = tuple[int, int]  # (height, width)
PixelBox = tuple[int, int, int, int]  # left, top, right, bottom: the indices of the outermost pixels

MAX_RLE_CHARS = 4 << 20  # of one mask; reading them takes some forty times as many bytes


def encode_rle(mask: BoolMask) -> str:
    """COCO's compressed run-length string ("counts") of a mask (height, width)."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def check_rle_length(counts: str, field: str) -> None:
    """Refuses a string that is longer than :func:`rle_runs` reads.

    Raises:
        RegionSearchError: TOO_LARGE over `MAX_RLE_CHARS`.
    """
    if len(counts) > MAX_RLE_CHARS:
        raise too_large(
            field,
            f"{field} has run lengths of {len(counts)} characters, over the limit of {MAX_RLE_CHARS}; masks "
            "of objects have far fewer",
        )


def rle_runs(counts: str, height: int, width: int, field: str = "mask.coco_rle") -> Runs:
    """The run lengths of a compressed string: column by column, beginning with zeros.

    The format is that of pycocotools' `rleFrString`: 5 bits a character, the sixth says that more follow, the
    fifth of the last one is the sign, and from the fourth run on the value is the difference to the run
    before the last. Parsed here because the library trusts the string with its memory.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the string is malformed or does not cover height x width,
            TOO_LARGE over `MAX_RLE_CHARS`.
    """
    check_rle_length(counts, field)
    chars = np.frombuffer(counts.encode(errors="surrogatepass"), np.uint8) - 48  # what is less wraps around
    if chars.size == 0 or chars.max() > 63 or chars[-1] & 32:
        raise invalid(field, f"{field} is not a COCO run-length string; send what pycocotools calls counts")
    ends = np.flatnonzero((chars & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = (ends - starts + 1).clip(max=8).astype(np.int8)
    if lengths.max() > 7:  # 35 bits: no run of an image is longer
        raise invalid(field, f"{field} holds a run longer than any image; send what pycocotools calls counts")
    values = np.where(chars[ends] & 16, -(np.int64(1) << (5 * lengths.astype(np.int64))), 0)
    for place in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        values[longer] += (chars[starts[longer] + place] & np.int64(31)) << (5 * place)
    del chars, ends, starts, lengths
    np.cumsum(values[1::2], out=values[1::2])
    np.cumsum(values[2::2], out=values[2::2])
    # Each run for itself first: a sum of hostile ones can wrap around to the right number, and NumPy would
    # write past the end of the mask.
    if values.min() < 0 or values.max() > height * width or int(values.sum()) != height * width:
        raise invalid(
            field,
            f"{field} has runs that do not add up to the {height * width} pixels of a mask of "
            f"{height} x {width}; encode the mask at the size of its image",
        )
    return values


class CocoRle(TypedDict):
    """A mask in pycocotools' form: `size` is [height, width], `counts` the compressed run lengths."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class RunLengthMask:
    """A mask as large as its image, as pixel ranges in column-major order, which is COCO's.

    A small region of a large image costs what a small region costs; none of the properties decodes the mask.

    Attributes:
        size: (height, width) of the image.
        starts: First pixel of each run, int64, ascending.
        stops: Pixel after each run, int64; a run ends before the next one starts.
    """

    size: Size
    starts: Runs
    stops: Runs

    @classmethod
    def from_coco_rle(
        cls, counts: str, height: int, width: int, field: str = "mask.coco_rle"
    ) -> RunLengthMask:
        """The mask of a compressed run-length string.

        Raises:
            RegionSearchError: See :func:`rle_runs`.
        """
        ends = np.cumsum(rle_runs(counts, height, width, field))
        starts, stops = ends[:-1:2], ends[1::2]
        filled = starts < stops  # a string may hold runs of no pixels
        return cls._joined((height, width), starts[filled], stops[filled])

    @classmethod
    def from_mask(cls, mask: BoolMask) -> RunLengthMask:
        """The runs of a mask (height, width)."""
        return cls.from_windows((mask.shape[0], mask.shape[1]), [(mask, 0, 0)])

    @classmethod
    def from_windows(cls, size: Size, windows: Iterable[tuple[BoolMask, int, int]]) -> RunLengthMask:
        """Runs of a mask given as windows (mask, top, left), from left to right, without overlap."""
        edges = [np.empty(0, np.int64)]
        for mask, top, left in windows:
            height, width = mask.shape
            # A row of zeros above and below separates the columns.
            columns = np.zeros((width, height + 2), np.int8)
            columns[:, 1:-1] = mask.T
            changes = np.flatnonzero(np.diff(columns.reshape(-1)))
            column, row = np.divmod(changes, height + 2)
            edges.append((left + column) * size[0] + top + row)
        return cls.from_edges(size, np.concatenate(edges))

    @classmethod
    def from_edges(cls, size: Size, edges: Runs) -> RunLengthMask:
        """Runs given as first pixel and pixel after each, int64, ascending; they may touch."""
        return cls._joined(size, edges[0::2], edges[1::2])

    @classmethod
    def _joined(cls, size: Size, starts: Runs, stops: Runs) -> RunLengthMask:
        """Joins runs that touch: one that reaches the lower edge continues at the top of the next column."""
        apart = starts[1:] != stops[:-1]
        first = np.ones(len(starts), bool)
        first[1:] = apart
        last = np.ones(len(stops), bool)
        last[:-1] = apart
        return cls(size, starts[first], stops[last])

    @classmethod
    def vote(cls, masks: Sequence[RunLengthMask], weights: Sequence[float]) -> RunLengthMask:
        """The pixels of masks that together have more than half of the weight.

        Args:
            masks: Masks of one size, at least one.
            weights: Weights of the masks, not negative; if all are 0 the result is empty.
        """
        places = np.concatenate([side for mask in masks for side in (mask.starts, mask.stops)])
        votes = np.repeat(
            [change for weight in weights for change in (weight, -weight)],
            [len(mask.starts) for mask in masks for _ in range(2)],
        )
        edges, group = np.unique(places, return_inverse=True)
        # The rounding error of a sum of 0 is not a majority.
        wins = np.bincount(group, votes, len(edges)).cumsum() > sum(weights) * (0.5 + 1e-9)
        flips = edges[np.diff(wins, prepend=False)]
        return cls(masks[0].size, flips[0::2], flips[1::2])

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    @property
    def box(self) -> PixelBox:
        """(left, top, right, bottom), the indices of the outermost pixels; zeros for an empty mask."""
        if not len(self.starts):
            return 0, 0, 0, 0
        height = self.size[0]
        first, top = np.divmod(self.starts, height)
        last, bottom = np.divmod(self.stops - 1, height)
        whole = bool((last > first).any())  # a run that goes on in the next column touches both edges
        left, right = int(first[0]), int(last[-1])
        return left, 0 if whole else int(top.min()), right, height - 1 if whole else int(bottom.max())

    def counts(self) -> Runs:
        """COCO's uncompressed counts: lengths of alternating runs of zeros and ones, beginning with zeros."""
        edges = np.empty(2 * len(self.starts) + 2, np.int64)
        edges[0], edges[-1] = 0, self.size[0] * self.size[1]
        edges[1:-1:2], edges[2:-1:2] = self.starts, self.stops
        counts = np.diff(edges)
        return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts

    @cached_property
    def rle(self) -> CocoRle:
        """The mask for pycocotools, encoded once."""
        height, width = self.size
        form = {"size": [height, width], "counts": self.counts().tolist()}
        encoded: bytes = coco.frPyObjects(form, height, width)["counts"]
        return {"size": [height, width], "counts": encoded}

    def coco_rle(self) -> str:
        """COCO's compressed run-length string."""
        return self.rle["counts"].decode("ascii")

    def to_mask(self) -> BoolMask:
        """The mask, bool (height, width)."""
        return self.window(0, self.size[0], 0, self.size[1])

    def window(self, top: int, bottom: int, left: int, right: int) -> BoolMask:
        """Rows [top, bottom) and columns [left, right) of the mask; decodes no other columns."""
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
        return np.ascontiguousarray(flat.reshape(right - left, height)[:, top:bottom].T)

    def contains(self, rows: Runs, columns: Runs) -> NDArray[np.bool_]:
        """Whether the pixels (rows[i], columns[i]), which lie in the image, belong to the mask."""
        places = columns * self.size[0] + rows
        inside: NDArray[np.bool_] = np.searchsorted(self.starts, places, "right") > np.searchsorted(
            self.stops, places, "right"
        )
        return inside


def decode_rle(counts: str, height: int, width: int, field: str = "mask.coco_rle") -> BoolMask:
    """The mask (height, width) of a compressed run-length string.

    Raises:
        RegionSearchError: INVALID_ARGUMENT when the string is malformed or of another size.
    """
    return RunLengthMask.from_coco_rle(counts, height, width, field).to_mask()


def mask_box(mask: BoolMask) -> tuple[float, float, float, float] | None:
    """The smallest half-open box (x_min, y_min, x_max, y_max) around a mask; None when the mask is empty."""
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
