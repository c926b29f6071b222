"""Parsing and checks of requests; runs in the batcher's prepare threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from regionsearch.errors import RegionSearchError, invalid
from regionsearch.images import ImageLimits, image_from_proto
from regionsearch.masks import BoolMask
from regionsearch.prompts import Edges, check_box, read_box
from regionsearch.tensors import runs_from_proto
from regionsearch.v1 import embed_pb2, types_pb2
from services.embedder.crop_plan import Window, pixel_box
from services.embedder.tasks import Regions

Decode = Callable[[], BoolMask]

READ_PIXELS = 1 << 30  # pixels of masks that are read in one go
AHEAD_BYTES = 1 << 26  # bytes of one request's masks that are decoded ahead of the device


def split_by_memory(request: embed_pb2.EmbedRegionsRequest) -> list[range]:
    """Splits the regions of a request into ranges that take seconds to read.

    A thousand masks of a large image take minutes to read; between ranges other requests are read. The image
    is decoded for each range, because it must not wait in memory.
    """
    count = len(request.regions)
    largest = max((region.mask.height * region.mask.width for region in request.regions), default=0)
    step = max(1, READ_PIXELS // max(1, largest))
    return [range(first, min(first + step, count)) for first in range(0, count, step)] or [range(0)]


def runs_bytes(request: embed_pb2.EmbedRegionsRequest) -> int:
    """Upper bound of the memory that the run lengths of a request's masks take."""
    return 8 * sum(len(region.mask.coco_rle) for region in request.regions)


def read_regions(
    request: embed_pb2.EmbedRegionsRequest, limits: ImageLimits, places: range | None = None
) -> Regions:
    """The image of a request and its regions, or those of a range.

    A region is its box, its mask, or the part of the mask inside the box.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, UNSUPPORTED_IMAGE or TOO_LARGE, naming the field.
    """
    pixels = image_from_proto(request.image, limits)
    height, width = pixels.shape[:2]
    places = places or range(len(request.regions))
    regions = [request.regions[place] for place in places]
    boxes = np.empty((len(regions), 4), np.float32)
    masks = _Masks() if any(region.HasField("mask") for region in regions) else None
    for index, (place, region) in enumerate(zip(places, regions, strict=True)):
        field = f"regions[{place}]"
        box = _read_box(region.box, height, width, f"{field}.box") if region.HasField("box") else None
        if region.HasField("mask"):
            boxes[index], decode = _read_mask(region.mask, box, height, width, f"{field}.mask")
        elif box is not None:
            boxes[index], decode = box, functools.partial(_full, pixel_box(box, height, width))
        else:
            raise invalid(field, f"{field} has neither a box nor a mask; set at least one of them")
        if masks is not None and not masks.add(decode):
            raise _empty(f"{field}.mask")
    return Regions(pixels, boxes, masks)


class _Masks(Sequence[BoolMask]):
    """Masks cut to their boxes. Those beyond `AHEAD_BYTES` are decoded on each access.

    A few bytes of run lengths can encode a mask of a large image, and a request holds a thousand of them.
    """

    def __init__(self) -> None:
        self._left = AHEAD_BYTES
        self._masks: list[BoolMask | Decode] = []

    def add(self, decode: Decode) -> bool:
        """Adds a mask; False when it has no pixel."""
        mask = decode()
        self._left -= mask.size
        self._masks.append(mask if self._left >= 0 else decode)
        return bool(mask.any())

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, index: Any) -> Any:
        mask = self._masks[index]
        return mask() if callable(mask) else mask


def _empty(field: str) -> RegionSearchError:
    return invalid(field, f"{field} is empty; a region has at least one pixel, inside its box if it has one")


def _read_box(box: types_pb2.Box, height: int, width: int, field: str) -> Edges:
    edges = read_box(box, field)
    check_box(edges, (height, width), field)
    return edges


def _read_mask(
    mask: types_pb2.Mask, box: Edges | None, height: int, width: int, field: str
) -> tuple[Edges, Decode]:
    """The region's box, and a function that decodes its mask inside the whole pixels of that box."""
    if (mask.height, mask.width) != (height, width):
        raise invalid(
            field,
            f"{field} is {mask.width} x {mask.height}, its image {width} x {height} pixels (after EXIF "
            "orientation); they must be equal",
        )
    runs = runs_from_proto(mask, field, height * width)
    if not runs.area:
        raise _empty(field)
    if box is None:
        left, top, right, bottom = runs.box
        box = float(left), float(top), float(right + 1), float(bottom + 1)
    window = pixel_box(box, height, width)
    return box, functools.partial(runs.window, window.top, window.bottom, window.left, window.right)


def _full(window: Window) -> BoolMask:
    return np.ones((window.height, window.width), np.bool_)
