"""Selection of the regions that are worth indexing, and their encoder features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco

from regionsearch.masks import RunLengthMask
from services.segmenter.backends.base import Embedding, Geometry, Size
from services.segmenter.everything import Region
from services.segmenter.options import RankBy, SelectionOptions


def select_regions(regions: Sequence[Region], options: SelectionOptions) -> list[Region]:
    """Drops what is too small, too large, too unstable or a near-duplicate, and keeps the best of the rest.

    Near-duplicates are measured on the masks: a ring and the plate inside it share their box but not their
    pixels.

    Args:
        regions: The regions of one image.
        options: The limits.

    Returns:
        Best first: by predicted IoU times stability, ties by area, or by area, ties by the former; then in
        the order given.
    """
    kept: list[Region] = []
    fitting = (region for region in regions if _fits(region, options))
    step = -1 if options.rank_by is RankBy.AREA else 1
    for region in sorted(fitting, key=lambda region: region.rank[::step], reverse=True):
        others = [other.runs.rle for other in kept]
        if others and coco.iou([region.runs.rle], others, [0] * len(others)).max() > options.mask_nms_thresh:
            continue
        kept.append(region)
        if len(kept) == options.max_regions:
            break
    return kept


def _fits(region: Region, options: SelectionOptions) -> bool:
    left, top, right, bottom = region.box
    height, width = region.runs.size
    return (
        min(right - left, bottom - top) + 1 >= options.min_side
        and max(1, options.min_area) <= region.area <= options.max_area_fraction * height * width
        and region.stability_score >= options.min_stability_score
    )


def pool_features(
    embedding: Embedding, masks: Sequence[RunLengthMask], level: int = 0
) -> NDArray[np.float32]:
    """Averages one of the encoder's feature maps over each mask, L2-normalised.

    Cells are weighted by the number of mask pixels inside them, so that regions smaller than a cell have
    features, too.

    Args:
        embedding: The embedding of the whole image.
        masks: Masks of that image.
        level: Which map: 0 is the coarsest.

    Returns:
        float32 (n, channels); zeros for an empty mask.
    """
    features = embedding.features[level].float().cpu()
    map_size = features.shape[1], features.shape[2]
    weights = [cover(mask, embedding.geometry, map_size).reshape(-1) for mask in masks]
    weighting = torch.from_numpy(np.array(weights).reshape(len(masks), features[0].numel())).float()
    pooled = weighting @ features.flatten(1).t()
    normalised: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return normalised


def cover(runs: RunLengthMask, geometry: Geometry, map_size: Size) -> NDArray[np.float64]:
    """The share of a mask's pixels in each cell of the feature map, float64 `map_size`; sums to 1."""
    left, top, right, bottom = runs.box
    mask = runs.window(top, bottom + 1, left, right + 1)
    rows = _cells(top, bottom + 1, geometry, 0, map_size)
    columns = _cells(left, right + 1, geometry, 1, map_size)
    counts = np.zeros(map_size)
    by_row = np.add.reduceat(mask, *_edges(rows), axis=0, dtype=np.int64)
    counts[np.ix_(np.unique(rows), np.unique(columns))] = np.add.reduceat(by_row, *_edges(columns), axis=1)
    shares: NDArray[np.float64] = counts / max(1.0, counts.sum())
    return shares


def _cells(start: int, stop: int, geometry: Geometry, axis: int, map_size: Size) -> NDArray[np.int64]:
    """The cell of the feature map that each pixel [start, stop) of an axis lies in."""
    scale = geometry.input_size[axis] / geometry.image_size[axis]
    places = (np.arange(start, stop) + 0.5) * scale + geometry.corner[axis]
    cells = (places * (map_size[axis] / geometry.padded_size[axis])).astype(np.int64)
    return np.minimum(cells, map_size[axis] - 1)


def _edges(cells: NDArray[np.int64]) -> tuple[NDArray[np.int64]]:
    return (np.flatnonzero(np.diff(cells, prepend=-1)),)
