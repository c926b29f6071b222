"""Selection of the regions that are worth indexing."""

from __future__ import annotations

from collections.abc import Sequence

from pycocotools import mask as coco

from services.segmenter.everything import Region
from services.segmenter.options import SelectionOptions


def select_regions(regions: Sequence[Region], options: SelectionOptions) -> list[Region]:
    """Drops what is too small, too large, too unstable or a near-duplicate, and keeps the best of the rest.

    Near-duplicates are measured on the masks: a ring and the plate inside it share their box but not their
    pixels.

    Args:
        regions: Of one image.
        options: Limits.

    Returns:
        Best first: by predicted IoU times stability, ties by area, then in the order given.
    """
    kept: list[Region] = []
    fitting = (region for region in regions if _fits(region, options))
    for region in sorted(fitting, key=lambda region: region.rank, reverse=True):
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
