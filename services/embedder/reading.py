"""Messages to pictures and regions, checked field by field; runs in the batcher's prepare threads."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from regionsearch.errors import invalid
from regionsearch.images import ImageLimits, image_from_proto
from regionsearch.masks import mask_box, mask_from_proto, rle_runs
from regionsearch.v1 import embed_pb2, types_pb2
from services.embedder.crops import Window, pixel_box
from services.embedder.jobs import Regions

Runs = NDArray[np.int64]


def read_regions(request: embed_pb2.EmbedRegionsRequest, limits: ImageLimits) -> Regions:
    """The picture and the regions of a request.

    A region is its box, its mask, or the part of the mask inside the box.

    Raises:
        RegionSearchError: INVALID_ARGUMENT, UNSUPPORTED_IMAGE or TOO_LARGE, naming the field.
    """
    pixels = image_from_proto(request.image, limits)
    height, width = pixels.shape[:2]
    boxes = np.empty((len(request.regions), 4), np.float32)
    masks: list[NDArray[np.bool_]] = []
    for index, region in enumerate(request.regions):
        field = f"regions[{index}]"
        box = _read_box(region.box, height, width, f"{field}.box") if region.HasField("box") else None
        if region.HasField("mask"):
            boxes[index], mask = _read_mask(region.mask, box, height, width, f"{field}.mask")
        elif box is not None:
            inner = pixel_box(box, height, width)
            boxes[index], mask = box, np.ones((inner.height, inner.width), np.bool_)
        else:
            raise invalid(field, f"{field} has neither box nor mask; say what to cut out")
        masks.append(mask)
    any_mask = any(region.HasField("mask") for region in request.regions)
    return Regions(pixels, boxes, masks if any_mask else None)


def _read_box(box: types_pb2.Box, height: int, width: int, field: str) -> tuple[float, float, float, float]:
    edges = (box.x_min, box.y_min, box.x_max, box.y_max)
    if not all(math.isfinite(edge) for edge in edges):
        raise invalid(field, f"{field} has an edge that is no finite number")
    if box.x_min >= box.x_max or box.y_min >= box.y_max:
        raise invalid(field, f"{field} is empty: x_min < x_max and y_min < y_max are needed, in pixels")
    if box.x_min >= width or box.y_min >= height or box.x_max <= 0 or box.y_max <= 0:
        raise invalid(field, f"{field} lies outside of the image, which is {width} x {height} pixels")
    return edges


def _read_mask(
    mask: types_pb2.Mask,
    box: tuple[float, float, float, float] | None,
    height: int,
    width: int,
    field: str,
) -> tuple[tuple[float, float, float, float], NDArray[np.bool_]]:
    """The region's box and its mask, cut to the whole pixels of that box."""
    if (mask.height, mask.width) != (height, width):
        raise invalid(
            field,
            f"{field} is {mask.width} x {mask.height}, its image {width} x {height} pixels (after EXIF "
            "orientation); they must be equal",
        )
    if mask.WhichOneof("encoding") == "coco_rle":
        runs = rle_runs(mask.coco_rle, height, width, f"{field}.coco_rle")
        box = box or runs_box(runs, height)
        cut = None if box is None else runs_window(runs, height, pixel_box(box, height, width))
    else:
        whole = mask_from_proto(mask, field, height * width)
        box = box or mask_box(whole)
        inner = None if box is None else pixel_box(box, height, width)
        cut = None if inner is None else whole[inner.top : inner.bottom, inner.left : inner.right].copy()
    if box is None or cut is None or not cut.any():
        raise invalid(
            field, f"{field} is empty; a region has at least one pixel, inside its box if it has one"
        )
    return box, cut


def runs_box(runs: Runs, height: int) -> tuple[float, float, float, float] | None:
    """The smallest half-open box around a mask, without decoding it; None when the mask is empty.

    Args:
        runs: Lengths, column by column, beginning with zeros (see :func:`regionsearch.masks.rle_runs`).
        height: Rows of the mask.
    """
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2]
    first, last = (ends - lengths)[lengths > 0], ends[lengths > 0] - 1
    if first.size == 0:
        return None
    if (first // height != last // height).any():  # a run over several columns holds a top and a bottom pixel
        top, bottom = 0, height
    else:
        top, bottom = int((first % height).min()), int((last % height).max()) + 1
    return float(first[0] // height), float(top), float(last[-1] // height + 1), float(bottom)


def runs_window(runs: Runs, height: int, window: Window) -> NDArray[np.bool_]:
    """The part of a mask inside a window, decoding no more columns than that.

    Args:
        runs: As in :func:`runs_box`.
        height: Rows of the mask.
        window: Lies inside the mask.
    """
    ends = np.cumsum(runs)
    start, stop = window.left * height, window.right * height
    first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left"))
    edges = np.clip(ends[first : last + 1], start, stop)
    lengths = np.diff(edges, prepend=start)
    columns = np.repeat(np.arange(first, last + 1) % 2 == 1, lengths).reshape(window.width, height)
    return np.ascontiguousarray(columns.T[window.top : window.bottom])
